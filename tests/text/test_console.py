"""The live display of a generation, and stop strings."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import Configure
from terminals import MASK, Terminal, progress_of

from hybrid.data.tokenizers import ByteTokenizer, CharTokenizer
from hybrid.decoding.results import GenerationState
from hybrid.text.console import UNKNOWN, Console, Texts
from hybrid.text.terminal import printable, wrapped


def follow(steps: list[list[list[int]]], prompt: str, stops: list[str] | None = None, live: bool = True):
    terminal = Terminal()
    console = Console(ByteTokenizer(), MASK, prompt, stops or [], live, terminal)
    progress = [progress_of(rows, k + 1, k == len(steps) - 1) for k, rows in enumerate(steps)]
    return console.follow(iter(progress), len(steps[0])), terminal


@pytest.fixture
def small_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "5")


@pytest.mark.usefixtures("small_terminal")
def test_blocks_fill_in_live_and_the_end_is_complete() -> None:
    text = "a text that is far longer\nthan five lines of\n\ntwenty columns, so that a screen cannot hold it at all.\n"
    ids = list(text.encode())
    steps = [[[*ids[:k], *[MASK] * (len(ids) - k)]] for k in range(0, len(ids), 7)] + [[ids]]
    texts, terminal = follow(steps, "Prompt: ")
    assert texts.texts == [text]
    assert terminal.getvalue().endswith(f"\x1b[JPrompt: {text}\n")
    assert UNKNOWN in terminal.getvalue() and UNKNOWN not in "".join(terminal.screen(20))
    shown = [re.sub(r"\n\x1b\[\d+A$", "", frame) for frame in terminal.getvalue().split("\x1b[J")[1:-1]]
    assert all(len(frame.splitlines()) <= 4 for frame in shown)
    assert all(len(line) <= 20 for frame in shown for line in frame.splitlines())


@pytest.mark.usefixtures("small_terminal")
def test_a_frame_replaces_the_one_before() -> None:
    steps = [[[MASK] * 4], [[*b"a", MASK, MASK, *b"d"]], [list(b"abcd")]]
    _, terminal = follow(steps, "> ")
    assert terminal.screen(20) == ["> abcd", ""]
    assert [frame.split("\x1b")[0].strip() for frame in terminal.getvalue().split("\x1b[J")[1:]] == [
        f"> {UNKNOWN * 4}", f"> a{UNKNOWN * 2}d", "> abcd", "> abcd",
    ]  # fmt: skip


@pytest.mark.usefixtures("small_terminal")
def test_several_texts_are_drawn_apart_and_control_characters_not_obeyed() -> None:
    texts, terminal = follow([[[MASK], [MASK]], [list(b"one\x1b[2J"), list(b"two")]], "")
    assert texts.texts == ["one\x1b[2J", "two"]
    assert terminal.screen(20) == ["one [2J", "---", "two", ""]


@pytest.mark.parametrize("live", [True, False])
def test_documents_that_are_joined_are_told_apart_on_a_terminal_too(
    live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    end = ByteTokenizer().end_of_text
    ids = [*b"one", end, *b"two", end, end, *b"three"]
    texts, terminal = follow([[[MASK] * len(ids)], [ids[:5] + [MASK] * (len(ids) - 5)], [ids]], "> ", live=live)
    whole = "one<|endoftext|>two<|endoftext|><|endoftext|>three"
    assert texts.texts == [whole]
    if live:
        assert terminal.screen(60)[0] == f"> {whole}"
        assert f"> one<|endoftext|>t{UNKNOWN * (len(ids) - 5)}" in terminal.getvalue()


@pytest.mark.usefixtures("small_terminal")
def test_wide_characters_count_two_columns() -> None:
    wide = "\u6587\u5b57" * 8  # 16 characters, 32 columns
    _, terminal = follow([[list(wide.encode())]], "")
    first = terminal.getvalue().split("\x1b[J")[1]
    assert [len(line) for line in first.split("\n")[:2]] == [10, 6]


def test_a_stop_is_seen_when_what_is_before_it_is_known() -> None:
    steps = [
        [[*b"ab", MASK, *b"END", MASK]],  # the stop is there, but the text before it is not
        [[*b"abcEND", MASK]],
        [[*b"abcENDx"]],
    ]
    texts, _ = follow(steps, "", ["END"], live=False)
    assert texts.texts == ["abc"] and texts.nfe == 2


def test_a_stop_inside_a_character_of_several_bytes_is_no_stop() -> None:
    texts, _ = follow([[list("a\u00e9b".encode())]], "", ["\u00a9"], live=False)
    assert texts.texts == ["a\u00e9b"]


def test_the_console_works_with_other_tokenizers(configure: Configure) -> None:
    tokenizer = CharTokenizer("abc")
    console = Console(tokenizer, tokenizer.vocab_size, "", [], False)
    texts = console.follow(iter([progress_of([[0, 1, tokenizer.end_of_text]], 3, True)]), 1)
    assert texts.texts == ["ab"] and texts.statistics()["tokens"] == 3
    assert torch.tensor(texts.statistics()["tokens_per_forward"]).item() == 1.0


@pytest.mark.usefixtures("small_terminal")
def test_only_control_characters_are_replaced() -> None:
    """Joiners, ideographic spaces, variation selectors and marks of direction are part of a text."""
    family, persian = "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    text = f"{family} \u4e00\u3000\u4e8c {persian} \u2764\ufe0f \u200f\U000e0100\ue000"
    assert printable(text) == text
    assert printable("a\x1b[2J\x07\x9b\x7f\0\r\tb\n\ud800") == "a [2J     \tb\n "
    _, terminal = follow([[list(text.encode())]], "")
    assert terminal.getvalue().endswith(f"\x1b[J{text}\n")


def test_what_is_joined_counts_once_and_stays_together() -> None:
    family, dark = "\U0001f468\u200d\U0001f469\u200d\U0001f467\ufe0f", "\U0001f44d\U0001f3ff"
    assert wrapped(family * 3, 4) == [family * 2, family]
    assert wrapped(dark * 3, 4) == [dark * 2, dark]
    assert wrapped("\u2764\ufe0f" * 3, 4) == ["\u2764\ufe0f" * 2, "\u2764\ufe0f"]
    assert wrapped("\u0645\u200c\u062e" * 2, 2) == ["\u0645\u200c\u062e"] * 2
    assert wrapped("e\u0301" * 3, 2) == ["e\u0301" * 2, "e\u0301"]
    assert wrapped("\u1112\u1161\u11ab" * 2, 2) == ["\u1112\u1161\u11ab"] * 2
    assert wrapped("", 4) == [""] and wrapped("\u4e00", 1) == ["\u4e00"]
    assert wrapped("a\u3000b", 3) == ["a\u3000", "b"]


def test_tokens_behind_a_stop_are_not_counted_and_each_end_has_its_reason() -> None:
    text = torch.tensor([[*b"abENDx"], [*b"abcdef"], [*b"ab", 256, 0, 0, 0]])
    done = GenerationState(6, True, text, [(0, 6), (0, 6), (0, 3)], ["length", "length", "end_of_text"])
    texts = Console(ByteTokenizer(), MASK, "", ["END"]).follow(iter([done]), 3)
    assert texts.texts == ["ab", "abcdef", "ab"] and texts.finish_reasons == ["stop", "length", "end_of_text"]
    assert texts.n_tokens == texts.statistics()["tokens"] == 2 + 6 + 3
    nothing = Console(ByteTokenizer(), MASK, "").follow(iter(()), 2)
    assert nothing.texts == ["", ""] and nothing.finish_reasons == ["length"] * 2 and nothing.n_tokens == 0


@pytest.mark.usefixtures("small_terminal")
def test_batches_follow_each_other_on_the_screen() -> None:
    terminal = Terminal()
    console = Console(ByteTokenizer(), MASK, "> ", [], True, terminal)
    parts = [console.follow(iter([progress_of([[MASK], [MASK]], 1, False), progress_of(rows, 2, True)]), 2)
             for rows in ([[*b"a"], [*b"b"]], [[*b"c"], [*b"d"]])]  # fmt: skip
    assert terminal.screen(20) == ["> a", "---", "> b", "---", "> c", "---", "> d", ""]
    both = Texts.one_after_another(parts)
    assert both.texts == ["a", "b", "c", "d"] and (both.n_tokens, both.nfe) == (4, 4)
    assert both.finish_reasons == ["length"] * 4
