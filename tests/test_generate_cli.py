"""generate.py as its user sees it: text on stdout, figures on stderr, and one line for everything that is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Command, _module
from terminals import text_of

import hybrid
from hybrid import rng
from hybrid.distributed import Ranks
from hybrid.text.console import Console


def test_text_goes_to_stdout_and_figures_to_stderr(command: Command, trained: Path) -> None:
    done = command("generate.py", "--checkpoint", trained, "--prompt", "The list", "--max-new-tokens", 12, "--seed", 1)
    assert done.code == 0
    lm = hybrid.load(trained)
    prompt = lm.tokenizer.encode("The list")
    new = lm.generate([prompt], 12, decoder=lm.config.decoder, seed=1)
    assert done.out == f"The list{lm.tokenizer.decode(new.tokens[0])}\n"
    n, nfe = len(new.tokens[0]), new.nfe
    pattern = rf"{n} tokens in [\d.]+ s \(\d+ tokens/s\), {nfe} forwards \({n / nfe:.2f} tokens per forward\)"
    assert re.fullmatch(pattern, done.err.splitlines()[-1]), done.err


def test_json_is_one_object(command: Command, trained: Path) -> None:
    words = ["--prompt", "The ", "--num-samples", 3, "--max-new-tokens", 8, "--ignore-end-of-text"]
    plain = text_of(command, trained, *words)
    result = json.loads(text_of(command, trained, *words, "--json"))
    assert result["prompt"] == "The " and result["seed"] == 0 and len(result["texts"]) == 3
    assert plain == "\n---\n".join("The " + text for text in result["texts"]) + "\n"
    assert result["tokens"] == 24 and result["forwards"] == 8
    assert result["tokens_per_forward"] == 3.0 and result["tokens_per_second"] > 0 and result["seconds"] > 0


def test_samples_differ_and_the_first_does_not_depend_on_their_number(command: Command, trained: Path) -> None:
    one, three = (
        json.loads(text_of(command, trained, "--prompt", "Key", "--num-samples", k, "--json"))["texts"] for k in (1, 3)
    )
    assert len(set(three)) == 3 and three[0] == one[0]


def test_the_seed_decides(command: Command, trained: Path) -> None:
    a, b, c = (text_of(command, trained, "--prompt", "The", "--seed", seed) for seed in (5, 5, 6))
    assert a == b != c


def test_prompts_from_a_file_and_from_standard_input(command: Command, trained: Path, tmp_path: Path) -> None:
    direct = text_of(command, trained, "--prompt", "The list")
    (tmp_path / "prompt.txt").write_text("The list")
    assert text_of(command, trained, "--prompt-file", tmp_path / "prompt.txt") == direct
    assert text_of(command, trained, "--prompt", "-", stdin=b"The list\n") == direct
    assert text_of(command, trained, "--prompt-file", "-", stdin=b"The list\n") == direct


@pytest.mark.parametrize("flag", ["--prompt", "--prompt-file"])
def test_one_rule_for_the_text_of_prompts(flag: str, command: Command, trained: Path, tmp_path: Path) -> None:
    """A byte order mark at the start and one line end at the end are dropped, as in training; nothing else is."""
    for content, prompt in (
        (b"\xef\xbb\xbfThe list\r\n", "The list"),
        (b"The\nlist\n\n", "The\nlist\n"),
        (b"The list ", "The list "),
        (b"\n", ""),
        (b"", ""),
    ):
        (tmp_path / "prompt.txt").write_bytes(content)
        word = "-" if flag == "--prompt" else tmp_path / "prompt.txt"
        told = json.loads(text_of(command, trained, flag, word, "--max-new-tokens", 1, "--json", stdin=content))
        assert told["prompt"] == prompt
    # Line ends inside are kept too: this vocabulary has no carriage return to encode.
    (tmp_path / "prompt.txt").write_bytes(b"The\r\nlist\r\n")
    word = "-" if flag == "--prompt" else tmp_path / "prompt.txt"
    error = command("generate.py", "--checkpoint", trained, flag, word, stdin=b"The\r\nlist\r\n").error
    assert "U+000D) at position 3" in error


def test_the_batch_size_changes_no_text(command: Command, trained: Path, tmp_path: Path) -> None:
    words = ["--prompt", "The", "--num-samples", 5, "--max-new-tokens", 9, "--stop", "e", "--json"]
    whole = json.loads(text_of(command, trained, *words))
    for size in (1, 2, 5):
        page = tmp_path / "page.html"
        told = json.loads(text_of(command, trained, *words, "--batch-size", size, "--trace", page))
        for key in ("texts", "finish_reasons", "tokens"):
            assert told[key] == whole[key]
        assert told["forwards"] >= whole["forwards"] and (size < 5 or told["forwards"] == whole["forwards"])
        data = json.loads(re.findall(r'id="data">(.*?)</script>', page.read_text("utf-8"), re.S)[0])
        assert len(data["texts"]) == 5 and all(text["steps"] for text in data["texts"])
        assert data["facts"]["forwards"] == told["forwards"] and data["facts"]["tokens"] == told["tokens"]


def test_batches_of_all_ranks_are_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _module("generate.py")
    words = ["generate.py", "--checkpoint", "x", "--num-samples", "11", "--batch-size", "2"]
    monkeypatch.setattr(sys, "argv", words)
    arguments = module.parse()
    alone = [key for keys in module.batches_of_keys(arguments, [1, 2], Ranks()) for key in keys]
    assert len(set(alone)) == 11 and alone == rng.row_keys([[1, 2]] * 11)
    for world in (2, 3, 20):
        shares = [list(module.batches_of_keys(arguments, [1, 2], Ranks(rank, world))) for rank in range(world)]
        assert all(len(keys) <= 2 for share in shares for keys in share)
        assert sorted(key for share in shares for keys in share for key in keys) == sorted(alone)


def test_why_each_text_ended_and_what_was_counted(command: Command, trained: Path) -> None:
    words = ["--seed", 3, "--num-samples", 4, "--json"]
    lm = hybrid.load(trained)
    whole = lm.generate([[]] * 4, 32, seed=3, decoder=lm.config.decoder)
    told = json.loads(text_of(command, trained, *words))
    assert told["finish_reasons"] == whole.finish_reasons and told["tokens"] == sum(map(len, whole.tokens))
    stop = told["texts"][0][3:5]
    cut = json.loads(text_of(command, trained, *words, "--stop", stop))
    assert cut["finish_reasons"] == [
        "stop" if stop in text else reason for text, reason in zip(told["texts"], whole.finish_reasons, strict=True)
    ]
    n = [len(new) if stop not in text else len(kept)  # a token is a character here
         for new, text, kept in zip(whole.tokens, told["texts"], cut["texts"], strict=True)]  # fmt: skip
    assert cut["tokens"] == sum(n)


def test_documents_that_are_joined_are_told_apart(command: Command, trained: Path) -> None:
    lm = hybrid.load(trained)
    end = lm.tokenizer.end_of_text
    options = {"decoder": lm.config.decoder, "stop_at_end": False, "temperature": 2.0}
    rows = lm.generate([[]] * 20, 32, **options).tokens
    words = ["--num-samples", 20, "--ignore-end-of-text", "--temperature", 2]
    texts = json.loads(text_of(command, trained, *words, "--json"))["texts"]
    assert sum(end in row[:-1] for row in rows) > 3
    for row, text in zip(rows, texts, strict=True):
        spelled = "".join("<|endoftext|>" if token == end else lm.tokenizer.decode([token]) for token in row)
        assert text == (spelled if row[-1] != end else spelled.removesuffix("<|endoftext|>"))
    assert text_of(command, trained, *words) == "\n---\n".join(texts) + "\n"


def test_by_default_the_context_is_filled(command: Command, trained: Path) -> None:
    assert json.loads(text_of(command, trained, "--ignore-end-of-text", "--prompt", "The", "--json"))["tokens"] == 29
    nothing = ["--prompt", "The", "--max-new-tokens", "0", "--num-samples", "2"]
    assert text_of(command, trained, *nothing) == "The\n---\nThe\n"
    assert json.loads(text_of(command, trained, *nothing, "--json"))["texts"] == ["", ""]


def test_a_stop_string_cuts_the_text_and_removes_nothing_else(command: Command, trained: Path) -> None:
    words = ["--seed", 3, "--num-samples", 2, "--ignore-end-of-text", "--json"]
    whole = json.loads(text_of(command, trained, *words))["texts"]
    stop = whole[0][5:7]
    assert len(whole[0]) == 32
    cut = json.loads(text_of(command, trained, *words, "--stop", stop))["texts"]
    assert cut == [text[: text.index(stop)] if stop in text else text for text in whole]
    assert len(cut[0]) <= 5
    # Two: the earliest counts. And a prompt may hold a stop string.
    both = json.loads(text_of(command, trained, *words, "--stop", stop, "--stop", whole[0][2:4]))["texts"]
    assert both[0] == whole[0][: min(whole[0].index(stop), whole[0].index(whole[0][2:4]))]
    held = json.loads(text_of(command, trained, "--prompt", stop + "the", *words, "--stop", stop))
    assert held["prompt"] == stop + "the"


def test_generation_ends_when_every_text_has_met_its_stop(command: Command, trained: Path) -> None:
    words = ["--seed", 3, "--ignore-end-of-text", "--json"]
    whole = json.loads(text_of(command, trained, *words))
    cut = json.loads(text_of(command, trained, *words, "--stop", whole["texts"][0][:2]))
    assert cut["texts"] == [""] and cut["forwards"] < whole["forwards"] / 3


def test_a_trace_beside_the_same_text(command: Command, trained: Path, tmp_path: Path) -> None:
    words = ["--prompt", "The", "--num-samples", 2, "--max-new-tokens", 9, "--decoder", "mask_predict", "steps=2"]
    plain = text_of(command, trained, *words)
    for _ in range(2):  # a page replaces the page before
        done = command("generate.py", "--checkpoint", trained, *words, "--trace", tmp_path / "page.html")
        assert done.code == 0 and done.out == plain
        assert done.err.splitlines()[-1] == f"wrote {tmp_path / 'page.html'}"
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    data = json.loads(re.findall(r'id="data">(.*?)</script>', page, re.S)[0])
    lm = hybrid.load(trained)
    assert [text["prompt"] for text in data["texts"]] == [lm.tokenizer.encode("The")] * 2
    facts = {"model": str(trained), "decoder": "mask_predict (steps 2)", "block size": 4, "temperature": 1.0, "seed": 0}
    assert data["facts"].items() >= facts.items() and data["facts"]["tokens"] <= 18
    assert data["texts"][0]["steps"][0][0] == 1 and data["texts"][0]["steps"][-1][0] <= data["facts"]["forwards"]
    traced = ["--trace", tmp_path / "page.html"]
    before, now = (json.loads(text_of(command, trained, *words, "--json", *more)) for more in ([], traced))
    assert before["texts"] == now["texts"] and before["forwards"] == now["forwards"]


def test_a_stop_beside_gaps_cuts_what_is_behind_the_prompt(command: Command, trained: Path) -> None:
    words = ["--infill", "--prompt", "the <gap:2> list", "--block-size", 16, "--max-new-tokens", 8, "--json"]
    whole = json.loads(text_of(command, trained, *words))
    head, new = whole["texts"][0][:11], whole["texts"][0][11:]
    assert head.startswith("the ") and head.endswith(" list") and len(new) > 3
    cut = json.loads(text_of(command, trained, *words, "--stop", new[2]))
    assert cut["texts"] == [head + new[: new.index(new[2])]] and cut["finish_reasons"] == ["stop"]
    assert cut["filled"] == whole["filled"]
    held = json.loads(text_of(command, trained, *words[:-2], 0, "--json", "--stop", "list"))
    assert re.fullmatch("the .. list", held["texts"][0], re.S) and held["finish_reasons"] == ["length"]
    assert held["forwards"] == 2, "nothing is asked for behind the prompt, so nothing is written there"


def test_in_a_process_of_its_own(trained: Path, environment_of_a_child: dict[str, str]) -> None:
    """The real streams, and a reader that goes away."""
    script = [sys.executable, str(ROOT / "generate.py"), "--checkpoint", str(trained), "--prompt", "-", "--json"]
    done = subprocess.run(script, input="The", capture_output=True, text=True, env=environment_of_a_child)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prompt"] == "The" and "tokens/s" in done.stderr


def test_on_a_terminal_json_is_still_one_object(
    command: Command, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hybrid.text.console

    kept = []
    original = hybrid.text.console.Console.__init__

    def spy(self: Console, *words, **options) -> None:
        original(self, *words, **options)
        kept.append(self.live)

    monkeypatch.setattr(hybrid.text.console.Console, "__init__", spy)
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True, raising=False)
    assert json.loads(text_of(command, trained, "--json"))["texts"] and kept == [False]
    assert "\x1b[J" in text_of(command, trained) and kept == [False, True]
