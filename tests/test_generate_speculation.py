"""Speculation on the command line: its text, its figures, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, Configure
from toy import toy_model

from hybrid.data.tokenizers import CharTokenizer
from hybrid.lm import LanguageModel


def saved(configure: Configure, folder: Path, kind: str, *more: str) -> Path:
    options = [
        "model.context=causal",
        f"model.prediction={kind}",
        "data.seq_len=32",
        "objective.block_size=[4,1]",
        "objective.ar_weight=0.5",
    ]
    sizes = ["model.dim=16", "model.n_layers=2", "model.n_heads=4", "model.n_kv_heads=2", "model.hidden_dim=64"]
    config = configure(folder / "run", *options, *sizes, *more)
    model = toy_model("causal", kind, seed=1).float()
    return LanguageModel(config, CharTokenizer("abcdef"), model).save(folder / "saved")


@pytest.fixture(scope="module")
def causal(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `next_token` network."""
    return saved(configure, tmp_path_factory.mktemp("causal"), "next_token")


def told(command: Command, *words: Any) -> tuple[dict[str, Any], str]:
    done = command("generate.py", *words, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out), done.err


def test_its_text_is_the_autoregressive_one_and_its_rounds_are_counted(command: Command, causal: Path) -> None:
    words = ["--checkpoint", causal, "--prompt", "abc", "--num-samples", 5, "--batch-size", 2, "--noise", "gumbel"]
    plain, _ = told(command, *words, "--decoder", "autoregressive")
    at_1, _ = told(command, *words, "--block-size", 1)
    found, line = told(command, *words, "--decoder", "speculative", "rule=shared", "length=8")
    for other in (at_1, found):
        assert other["law"] == plain["law"] == "autoregressive"
        assert (other["texts"], other["finish_reasons"]) == (plain["texts"], plain["finish_reasons"])
    assert "rounds_by_tokens_kept" not in plain and found["forwards"] <= plain["forwards"]
    rounds = found["rounds_by_tokens_kept"]
    ends = found["finish_reasons"].count("end_of_text")
    assert ends > 0 and len(rounds) == 9 and sum(k * n for k, n in enumerate(rounds)) == found["tokens"]
    assert f"{found['tokens'] / sum(rounds):.2f} tokens kept a round" in line


@pytest.mark.slow
def test_every_output_says_which_law_was_asked_for(command: Command, configure: Configure, tmp_path: Path) -> None:
    """Of an in_place network block size 1 reads MASKs, which is another law than that of its clean rows."""
    in_place, page = saved(configure, tmp_path, "in_place"), tmp_path / "page.html"
    texts = []
    for law, *words in [
        ("autoregressive", "--decoder", "autoregressive"),
        ("autoregressive", "--decoder", "speculative"),
        ("blocks of 1", "--block-size", 1),
        ("blocks of 4",),
    ]:
        found, line = told(command, "--checkpoint", in_place, "--prompt", "abc", *words, "--trace", page)
        assert found["law"] == law and f"law: {law}" in line and f'"law": "{law}"' in page.read_text()
        texts.append(found["texts"])
    assert texts[0] == texts[1] != texts[2]


def test_it_stops_at_strings_and_is_traced(command: Command, causal: Path, tmp_path: Path) -> None:
    words = ["--checkpoint", causal, "--prompt", "abc", "--ignore-end-of-text", "--max-new-tokens", 20]
    whole, _ = told(command, *words, "--decoder", "speculative")
    stop = whole["texts"][0][5:7]
    cut, _ = told(command, *words, "--decoder", "speculative", "--stop", stop, "--trace", tmp_path / "page.html")
    assert cut["texts"] == [whole["texts"][0].split(stop)[0]] and cut["finish_reasons"] == ["stop"]
    assert "Speculative" not in (page := (tmp_path / "page.html").read_text()) and "speculative" in page


def test_what_it_needs_is_said(command: Command, causal: Path, trained: Path) -> None:
    words = ["--decoder", "speculative"]
    error = command("generate.py", "--checkpoint", trained, *words).error
    assert "decoder: Speculative(" in error and "needs a network of prediction=next_token, or an in_place one" in error
    error = command("bench.__main__", "speculate", "--checkpoint", trained, "--repeats", 1).error
    assert "needs a network of prediction=next_token" in error
    for more, message in [
        (["--guidance", 2], "guidance: 2.0 is nothing for decoder speculative, which asks one network alone"),
        (["--noise", "gumble"], "noise: 'gumble' is not one of gumbel, inverse (did you mean 'gumbel'?)"),
    ]:
        assert message in command("generate.py", "--checkpoint", causal, *words, *more).error
    error = command("generate.py", "--checkpoint", causal, *words, "lenght=3").error
    assert "decoder" in error and "did you mean 'length'?" in error


def test_it_warns_of_what_keeps_less_and_of_a_law_that_was_not_trained(
    command: Command, configure: Configure, tmp_path: Path
) -> None:
    trained = saved(configure, tmp_path / "trained", "next_token", "objective.block_size=4")
    plain = saved(configure, tmp_path / "plain", "next_token", "objective.block_size=4", "objective.ar_weight=0")
    words = ["--max-new-tokens", 4, "--decoder"]
    untrained = "warning: decoder: the autoregressive law was not trained; it is by objective.ar_weight or a block size"
    for folder, decoder, more, warned in [
        (trained, "speculative", [], "warning: noise: with rule=shared noise=gumbel (--noise gumbel) keeps more"),
        (trained, "speculative", ["--noise", "gumbel"], None),
        (trained, "speculative", ["--temperature", 0], None),
        (trained, "autoregressive", ["--block-size", 1], None),
        (trained, "speculative", ["--temperature", 0, "--block-size", 1], None),
        (trained, "speculative", ["--temperature", 0, "--block-size", 8], "warning: block_size: 8 was not trained"),
        (plain, "autoregressive", [], untrained),
    ]:
        _, said = told(command, "--checkpoint", folder, *words, decoder, *more)
        found = [line for line in said.splitlines() if line.startswith("warning: ")]
        assert len(found) == (warned is not None) and (warned is None or found[0].startswith(warned))


def test_a_gap_is_refused_before_a_block_size_is_recommended(command: Command, causal: Path) -> None:
    words = ["--checkpoint", causal, "--infill", "--prompt", "ab<gap:6>c", "--noise", "gumbel"]
    error = command("generate.py", *words, "--decoder", "speculative").error
    assert "decoder: speculative writes from the left" in error and "choose another decoder" in error


@pytest.mark.slow
def test_its_benchmark_says_what_a_round_keeps_and_must_keep(command: Command, causal: Path, tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    sizes = ["--length", 4, "--batch", 1, 2, "--new-tokens", 6, "--repeats", 1, "--json", file]
    asked = ["--prompt", "abc", "d", "", "--seed", 0, 1, "--rule", "shared", "--also", "fused=true,adapt=true"]
    words = ["--checkpoint", causal, *asked, *sizes]
    done = command("bench.__main__", "speculate", *words)
    assert done.code == 0, done.err
    results = json.loads(file.read_text())["results"]
    assert [(row["batch"], row["rows of a text"]) for row in results["forwards"]] == [(1, 1), (1, 4), (2, 1), (2, 4)]
    rows = results["texts"]
    assert len(rows) == 2 * (3 + 3), "at temperature 0 all rules are one"
    assert {row["decoder"] for row in rows} >= {
        f"{rule}, length 4, fused=true,adapt=true" for rule in ("argmax", "shared")
    }
    for row in rows:
        if row["decoder"] == "autoregressive":
            assert row["forwards a token"] == row["of plain"] == 1 and row["tokens kept a round"] is None
        else:
            counts = [int(n) for n in row["rounds by tokens kept"].split()]
            assert sum(k * n for k, n in enumerate(counts)) == 6 * row["texts"] and row["pays above"] > 0
            assert row["tokens kept a round"] == round(6 * row["texts"] / sum(counts), 2)
        n_seeds = 2 if row["temperature"] else 1
        assert row["texts"] == n_seeds * (3 if row["batch"] == 1 else 4), "two batches of two for three prompts"
    for also, message in [
        ("lenght=2", "--also lenght=2: decoder.lenght"),
        ("adapt", "--also adapt: "),
        ("fused=true,length=17", "--also fused=true,length=17: decoder.length: 17 must be at most 16"),
    ]:
        assert message in command("bench.__main__", "speculate", *words[: -len(sizes)], "--also", also).error
    error = command("bench.__main__", "speculate", *words, "--temperature", "-1").error
    assert "temperature: -1.0 must be" in error
    assert "--rule: 'share' is not one of" in command("bench.__main__", "speculate", *words, "--rule", "share").error
