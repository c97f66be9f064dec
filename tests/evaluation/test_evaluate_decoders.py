"""python -m hybrid.evaluate --decoders --orders: likelihoods of orders, and texts of decoders beside real text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import Command

from hybrid.decoding import DECODERS
from hybrid.decoding.decoder import suits
from hybrid.evaluation.divergence import LEAST
from hybrid.evaluation.results import REAL
from hybrid.model import ModelConfig

pytestmark = pytest.mark.usefixtures("any_size_may_be_asked_for")


def test_decoders_and_orders_in_one_command(command: Command, copy_of_trained: Path) -> None:
    words = ["--checkpoint", copy_of_trained, "--rows", 2, "--draws", 2, "--samples", 4, "--block-size", 4]
    done = command("evaluate", *words, "--decoders", "all", "--orders", "all", "--judge", copy_of_trained)
    assert done.code == 0, done.err
    saved = json.loads((copy_of_trained / "eval.json").read_text())
    assert [line["decoder"] for line in saved["generation"]] == [
        REAL,
        *(name for name in DECODERS if suits(DECODERS[name], ModelConfig())),
    ]
    likelihoods, texts = (part.splitlines() for part in done.out.split("\n\n"))
    listed = [f"{line['likelihood']} {line.get('decoder', '')}".rstrip() for line in saved["results"]]
    assert {"bound", "enumerate", "importance", "policy margin", "tightest", "best_order"} <= set(listed)
    assert [re.split(r"\s{2,}", line.strip())[1] for line in likelihoods[2:-2]] == listed
    for head in ("NFE/tok", "tok/s", "entropy", "dist-1", "dist-2", "rep-4", "selfBLEU", "gen-ppl", "MAUVE*", "policy"):
        assert head in texts[0]
    by_name = {line["decoder"]: line for line in saved["generation"]}
    policies = {line["decoder"]: line["nats_per_token"] for line in saved["results"] if "decoder" in line}
    assert by_name["margin"]["policy_nats_per_token"] == policies["margin"]
    assert by_name["first_hitting"]["policy_nats_per_token"] is None
    row = next(line for line in texts if line.startswith("margin")).split()
    assert row[2] == "1.000" and row[4] == f"{by_name['margin']['entropy']:.3f}"
    assert saved["judge"]["likelihood"] == "exact" and saved["settings"]["samples"] == 4
    assert "policy first_hitting: left out: decoder:" in done.err


def test_decoders_alone_cost_no_likelihood_of_their_orders(command: Command, copy_of_trained: Path) -> None:
    words = ["--checkpoint", copy_of_trained, "--rows", 2, "--samples", 2, "--new-tokens", 8, "--block-size", 4]
    done = command("evaluate", *words, "--decoders", "margin", "confidence:token=best", "--orders", "margin")
    assert done.code == 0, done.err
    saved = json.loads((copy_of_trained / "eval.json").read_text())
    has = {line["decoder"]: line["policy_nats_per_token"] is not None for line in saved["generation"][1:]}
    assert has == {"margin": True, "confidence:token=best": False}
    assert [line["decoder"] for line in saved["results"] if "decoder" in line] == ["margin"]


def test_texts_do_not_depend_on_the_batch(command: Command, copy_of_trained: Path) -> None:
    words = ["--checkpoint", copy_of_trained, "--rows", 3, "--samples", LEAST, "--new-tokens", 8, "--prompt-tokens", 5]
    words += ["--decoders", "margin", "--orders", "margin", "--judge", copy_of_trained]
    found = []
    for n in (1, 8):
        done = command("evaluate", *words, "--batch-rows", n)
        assert done.code == 0 and "behind 5 prompt tokens" in done.out
        found.append(json.loads((copy_of_trained / "eval.json").read_text())["generation"])
    for a, b in zip(*found, strict=True):
        for key in a.keys() - {"decoder", "tokens_per_second"}:
            assert a[key] == pytest.approx(b[key], rel=1e-5), key


BAD = [
    ("--decoders margn", "--decoders: 'margn' is not one of .* .did you mean 'margin'"),
    ("--decoders margin:step=4", r"--decoders\.step: margin has no such option"),
    ("--decoders margin:4", "--decoders: option '4' is not name=value"),
    ("--orders first_hitting", "decoder: .* no policy likelihood"),
    ("--orders margn", "--orders: 'margn' is not one of"),
    ("--decoders margin --samples 0", "--samples: 0 must be at least 1"),
    ("--decoders margin --new-tokens 33", "--new-tokens: 33 behind 0 prompt tokens exceed the context of 32"),
    ("--decoders margin --new-tokens 0", "--new-tokens: 0 is too small"),
    ("--decoders margin --prompt-tokens 32", "--prompt-tokens: 32 fill the context of 32"),
    ("--decoders margin --prompt-tokens -1", "--prompt-tokens: -1 is too small"),
    ("--decoders margin --temperature -1", "temperature: -1.0 must be"),
    ("--decoders margin --top-p 2", "top_p: 2.0 must be"),
    ("--decoders margin --judge no/such", "judge: no/such is no folder"),
    ("--judge no/such", "--judge: has no effect without --decoders"),
    ("--new-tokens 4", "--new-tokens: has no effect without --decoders"),
]


@pytest.mark.parametrize("words, message", BAD, ids=[words for words, _ in BAD])
def test_a_wrong_option_is_one_line(words: str, message: str, command: Command, trained: Path, tmp_path: Path) -> None:
    done = command("evaluate", "--checkpoint", trained, "--output", tmp_path / "e.json", "--rows", 2, *words.split())
    assert re.search(message, done.error), done.error
    assert not (tmp_path / "e.json").exists()
