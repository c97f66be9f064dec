"""What a tracer records of a generation, the page made of it, and the figure of its order."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from decoding_toy import BLOCK_DECODERS, Conditionals, as_name, context_of, engine
from foreign_tokenizers import foreign
from toy import random_tokens, toy_model

from hybrid.data.tokenizers import ByteTokenizer, CharTokenizer, SubwordTokenizer, Tokenizer
from hybrid.decoding.results import Change
from hybrid.runs.plots import plot_unmasking_order
from hybrid.text.trace import Trace, TracedText, check_path, template, write_page

REMASKING = [
    {"name": "mask_predict", "steps": 3},
    {"name": "p2", "steps": 6, "eta": 5.0},
    {"name": "remdm", "steps": 6, "sigma": "rescale", "eta": 1.0},
    {"name": "remdm", "steps": 12, "sigma": "confidence", "eta": 1.0},
]
SPECS = [*BLOCK_DECODERS, {"name": "confidence", "steps": 2}, {"name": "ancestral", "steps": 3}, *REMASKING]
PROMPTS = [[], [1, 2, 3], [4, 0, 1, 2], [2, 1, 0, 3, 3, 1, 0]]
MASK = 7
TEMPLATE = template()


def replay(text: TracedText, width: int) -> list[int]:
    """The last state; every step must be possible in the state before it."""
    state = text.prompt + [MASK] * (width - len(text.prompt))
    for step in text.steps:
        for position, token, _ in step.revealed:
            assert state[position] == MASK != token
            state[position] = token
        for position in step.remasked:
            assert state[position] != MASK and position >= len(text.prompt)
            state[position] = MASK
    return state


# ---------------------------------------------------------------------------------------------------------------------
# The record


@pytest.mark.thin(6)
@pytest.mark.parametrize("spec", SPECS, ids=as_name)
def test_the_steps_lead_to_the_text_and_watching_changes_nothing(spec: Any) -> None:
    for options in ({}, {"cache": False}, {"stop_at_end": False, "guidance": 1.0}):
        run = engine(toy_model(context_of(spec)), 4, spec, **options)
        plain = run.generate(PROMPTS, 7)
        trace = Trace(run)
        *_, last = trace.stream(PROMPTS, 7)
        assert last.tokens == plain.tokens and last.nfe == plain.nfe
        for text, prompt, new in zip(trace.texts, PROMPTS, plain.tokens, strict=True):
            assert text.prompt == prompt and text.end == len(prompt) + len(new)
            assert replay(text, 14)[: text.end] == prompt + new
            forwards = [step.nfe for step in text.steps]
            assert forwards == sorted(forwards) and forwards[-1] <= plain.nfe
            assert all(step.revealed or step.remasked for step in text.steps)
        if spec in REMASKING:
            assert any(step.remasked for text in trace.texts for step in text.steps)


@pytest.mark.thin(2)
@pytest.mark.parametrize("spec", ["left_to_right", {"name": "confidence", "steps": 2}, *REMASKING], ids=as_name)
def test_confidence_is_the_probability_at_temperature_1(spec: Any) -> None:
    """By enumeration, whatever the sampling settings."""
    model, prompt, n = toy_model(vocab=4), (1, 2), 4
    conditionals = Conditionals(model, 4, n, prompt)
    trace = Trace(engine(model, 8, spec, seq_len=6, stop_at_end=False, temperature=0.5, top_k=3))
    for _ in trace.stream([prompt] * 3, n):
        pass
    for text in trace.texts:
        state: list[int | None] = [None] * n
        for step in text.steps:
            before = tuple(state)
            for position, token, p in step.revealed:
                assert p == pytest.approx(conditionals(before, position - len(prompt))[token], abs=1e-12)
                state[position - len(prompt)] = token
            for position in step.remasked:
                state[position - len(prompt)] = None
        assert None not in state


def test_a_generation_that_is_left_early_is_recorded_so_far() -> None:
    trace = Trace(engine(toy_model(), 4, "left_to_right", stop_at_end=False))
    assert trace.texts == []
    steps = trace.stream([[1, 2, 3]], 7)
    for _ in range(3):
        progress = next(steps)
    assert progress.nfe == 2 and [step.nfe for step in trace.texts[0].steps] == [1, 2]
    assert trace.texts[0].end == 8  # of the live block
    assert list(trace.stream([[1], []], 0)) == []
    assert trace.texts[1:] == [TracedText([1], 1), TracedText([], 0)]  # what comes later is added


# ---------------------------------------------------------------------------------------------------------------------
# The spelling of tokens


def test_pieces_make_the_bytes_of_a_text() -> None:
    text = "Return the  list\n\n of é 文字 \U0001f600 \ufffd\0"
    for tokenizer in (ByteTokenizer(), CharTokenizer(text), SubwordTokenizer.train([text] * 3, 280)):
        assert b"".join(map(tokenizer.piece, tokenizer.encode(text))) == text.encode()
        assert tokenizer.piece(tokenizer.end_of_text) == b""


def test_pieces_of_foreign_tokenizers(tmp_path: Path) -> None:
    """Those that drop a leading space at the start of a text, mark what goes on, or spell out bytes."""
    names = ["<unk>", "▁the", "s", "<0xC3>", "</s>"]
    spaces = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    first = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    llama = {"type": "Sequence", "decoders": [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}, first]}
    t5 = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    for name, decoder, byte in (("llama", llama, b"\xc3"), ("t5", t5, b"<0xC3>")):
        vocab = [[name, 0.0] for name in names]
        unigram = foreign(tmp_path / f"{name}.json", vocab, "Unigram", decoder, unk_id=0, byte_fallback=True)
        assert [unigram.piece(i) for i in range(1, 5)] == [b" the", b"s", byte, b""]
    vocab = {"[UNK]": 0, "the": 1, "##s": 2, "[SEP]": 3}
    decoder = {"type": "WordPiece", "prefix": "##", "cleanup": False}
    options = {"unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9}
    wordpiece = foreign(tmp_path / "wordpiece.json", vocab, "WordPiece", decoder, **options)
    assert [wordpiece.piece(i) for i in (1, 2, 3)] == [b" the", b"s", b""]


# ---------------------------------------------------------------------------------------------------------------------
# The page


def data_of(page: Path) -> dict[str, Any]:
    """What a browser takes for the data: up to the first end of a script."""
    (data,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script', page.read_text("utf-8"), re.S | re.I
    )
    return json.loads(data)


def page_of(path: Path, texts: list[TracedText], tokenizer: Tokenizer, **facts: object) -> Path:
    trace = Trace(engine(toy_model(), 4, "left_to_right"))
    trace.texts = texts
    write_page(path, trace, tokenizer, facts)
    return path


def test_the_page_holds_the_record(tmp_path: Path) -> None:
    tokenizer = CharTokenizer("abcdef")
    trace = Trace(engine(toy_model(), 4, REMASKING[0]))
    for _ in trace.stream(PROMPTS, 7):
        pass
    write_page(tmp_path / "page.html", trace, tokenizer, {"decoder": "mask_predict (steps 3)", "forwards": 9})
    data = data_of(tmp_path / "page.html")
    assert data["facts"] == {"decoder": "mask_predict (steps 3)", "forwards": 9} and data["block_size"] == 4
    assert data["ends"] == [6] and data["vocabulary"] == {str(i): "abcdef"[i : i + 1] for i in range(7)}
    for text, shown in zip(trace.texts, data["texts"], strict=True):
        assert (shown["prompt"], shown["end"]) == (text.prompt, text.end)
        for step, (forwards, revealed, remasked) in zip(text.steps, shown["steps"], strict=True):
            assert (forwards, remasked) == (step.nfe, step.remasked)
            assert revealed == [[position, token, round(p, 4)] for position, token, p in step.revealed]
    # Nothing of the template but the place of the data is changed.
    before, after = TEMPLATE.split("{{data}}")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page.startswith(before) and page.endswith(after)


HOSTILE = "</script><script>alert(1)</script><!-- <script> ]]> &lt; \" ' \\ {{data}}\r\n"
HOSTILE += "\u2028\u2029 \0 \x1b[2J \u202e é \U0001f600"


def test_hostile_texts_survive(tmp_path: Path) -> None:
    ids = [*HOSTILE.encode(), 0xFF, 0xC3, 256]
    step = Change(1, [(i, token, 0.5) for i, token in enumerate(ids)], [])
    page = page_of(tmp_path / "bytes.html", [TracedText([], len(ids), [step])], ByteTokenizer(), model=HOSTILE)
    data = data_of(page)
    assert data["facts"] == {"model": HOSTILE}
    shown = [data["vocabulary"][str(token)] for _, token, _ in data["texts"][0]["steps"][0][1]]
    spelled = b"".join(piece.encode() if isinstance(piece, str) else bytes(piece) for piece in shown)
    assert spelled == bytes(ids[:-1]) and data["vocabulary"]["255"] == [255] and data["vocabulary"]["256"] == ""
    text = page.read_text("utf-8")
    assert text.count("<script") == TEMPLATE.count("<script") == text.count("</script") == 2
    assert "\0" not in text
    # A token that is all of it.
    whole = CharTokenizer("x")
    whole.characters = [HOSTILE]  # type: ignore[assignment]
    assert data_of(page_of(tmp_path / "one.html", [TracedText([0], 1)], whole))["vocabulary"] == {"0": HOSTILE}


def test_a_probability_that_is_no_number_breaks_nothing(tmp_path: Path) -> None:
    texts = [TracedText([], 1, [Change(1, [(0, 0, float("nan"))], [])])]
    data = data_of(page_of(tmp_path / "page.html", texts, CharTokenizer("x")))
    assert data["texts"][0]["steps"] == [[1, [[0, 0, None]], []]]


def test_the_page_needs_nothing_else() -> None:
    for word in ("http:", "https:", "src=", "@import", "url(", "<link", "fetch(", "//cdn"):
        assert word not in TEMPLATE, word
    assert TEMPLATE.count("{{data}}") == 1 and "default-src 'none'" in TEMPLATE
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {"trace.html", "trace.js"} <= set(project["tool"]["setuptools"]["package-data"]["hybrid.text"])


def in_a_browser(page: Path, fragment: str = "") -> str:
    """What a browser shows; needs chromium."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium")
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom")
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [browser, *options, profile, page.as_uri() + fragment]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    return re.sub(r"<script.*?</script>", "", shown, flags=re.S)


@pytest.mark.slow
def test_the_page_opens_on_the_whole_text_in_colour_or_at_the_step_of_its_address(tmp_path: Path) -> None:
    steps = [Change(1, [(2, 2, 0.9)], []), Change(2, [(1, 1, 0.25)], []), Change(3, [(4, 3, 0.5)], [])]
    page = page_of(tmp_path / "page.html", [TracedText([0], 5, steps)], CharTokenizer("abcdef"))
    cell = r'<span data-at="(\d)" class="cell ([^"]*)"(?: style="--p: ([0-9.]+);")?>(.)</span>'
    whole, second, start = (in_a_browser(page, fragment) for fragment in ("", "#step=2", "#step=0"))
    assert "step 3 of 3, forward 3, block 2 of 2: 1 token revealed" in whole
    assert re.findall(cell, whole) == [
        ("0", "prompt", "", "a"), ("1", "known", "0.25", "b"), ("2", "known sure", "0.9", "c"),
        ("3", "masked", "", "░"), ("4", "known new", "0.5", "d"),
    ]  # fmt: skip
    assert re.search(r'<main id="text" class="filled"', whole) and "<dt>prompt</dt><dd>a</dd>" in whole
    assert "in blocks of 4 tokens, each in a frame" in whole and "or masks some again" not in whole
    assert all("hidden" in sign for sign in re.findall(r'<span data-if="back"[^>]*>', whole))
    assert "step 2 of 3" in second and [shown for *_, shown in re.findall(cell, second)][:3] == ["a", "b", "c"]
    assert "step 0 of 3" in start and [shown for *_, shown in re.findall(cell, start)][:3] == ["a", "░", "░"]


def test_a_page_replaces_an_older_page_and_nothing_else(tmp_path: Path) -> None:
    page = page_of(tmp_path / "page.html", [TracedText([0], 1)], CharTokenizer("x"))
    page_of(page, [TracedText([0, 0], 2)], CharTokenizer("x"))
    assert data_of(page)["texts"][0]["prompt"] == [0, 0]
    (tmp_path / "notes.html").write_text("<!doctype html> mine")
    for bad, message in (
        (tmp_path / "notes.html", "notes.html exists and is not the page of a trace"),
        (tmp_path, "exists and is not the page"),
        (tmp_path / "no" / "page.html", "no is not a folder"),
        (page / "page.html", "page.html is not a folder"),
    ):
        with pytest.raises(ValueError, match=f"^--trace: .*{message}"):
            check_path(bad)
    with pytest.raises(ValueError, match="--trace"):
        page_of(tmp_path / "notes.html", [], ByteTokenizer())
    assert (tmp_path / "notes.html").read_text() == "<!doctype html> mine"


# ---------------------------------------------------------------------------------------------------------------------
# The figure


@pytest.mark.parametrize("spec", ["left_to_right", REMASKING[0]], ids=as_name)
def test_the_figure_draws_the_record(spec: Any) -> None:
    trace = Trace(engine(toy_model(), 4, spec, stop_at_end=False))
    prompt = random_tokens(5).tolist()
    for _ in trace.stream([prompt], 6):
        pass
    figure = plot_unmasking_order(*trace.texts[0].order(), block_size=4, title="the title")
    axes = figure.axes[0]
    steps = trace.texts[0].steps
    shown, *crosses = axes.collections
    assert torch.tensor(shown.get_offsets()).tolist() == [[p, s.nfe] for s in steps for p, _, _ in s.revealed]
    assert shown.get_array().tolist() == [p for s in steps for _, _, p in s.revealed]
    back = [[p, s.nfe] for s in steps for p in s.remasked]
    assert [torch.tensor(c.get_offsets()).tolist() for c in crosses] == ([back] if back else [])
    assert bool(back) == (spec != "left_to_right")
    assert [line.get_xdata()[0] for line in axes.lines] == [3.5, 7.5, 11.5]
    assert axes.get_title(loc="left") == "the title"
