"""python -m hybrid.evaluate: the table, eval.json, and what its numbers may not depend on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command

import hybrid
from hybrid.data.batches import PackedTokens
from hybrid.evaluate import default_output, parse, settings_of
from hybrid.evaluation.scores import Scores, table
from hybrid.likelihoods.rows import SplitLikelihood, bound, perplexity
from hybrid.results.environment import conditions

pytestmark = pytest.mark.usefixtures("any_size_may_be_asked_for")


def rows_of(
    lm: hybrid.LanguageModel, split: PackedTokens, sizes: list[int], enumerate_orders: bool = False, **options: Any
) -> list[SplitLikelihood]:
    scores = Scores(lm, split, contextlib.nullcontext, **{"rows": 6, "draws": 3, "seed": 0, "batch_rows": 4, **options})
    return scores.lines(sizes, enumerate_orders)


def test_what_is_recorded_of_a_plain_evaluation_stays() -> None:
    """In this order; else a sweep would evaluate again what older versions have evaluated."""
    assert " ".join(settings_of(parse(["--checkpoint", "x"]))) == (
        "checkpoint block_size data format revision split rows draws enumerate orders batch_rows seed device precision "
        "decoders judge samples new_tokens prompt_tokens temperature top_k top_p"
    )
    more = settings_of(parse(["--checkpoint", "x", "--imports", "a", "--likelihoods", "exact"]))
    assert (more["imports"], more["likelihoods"]) == (["a"], ["exact"])


# ---------------------------------------------------------------------------------------------------------------------
# The numbers


def test_the_result_does_not_depend_on_the_batch(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    whole = rows_of(lm, split, [1, 4, 32], batch_rows=6)
    for batch_rows in (1, 4, 100):
        for expected, row in zip(whole, rows_of(lm, split, [1, 4, 32], batch_rows=batch_rows), strict=True):
            for key in ("nats_per_token", "stderr", "bits_per_byte"):
                assert getattr(row, key) == pytest.approx(getattr(expected, key), rel=1e-5, abs=1e-9), (batch_rows, key)
            assert row.by_count == pytest.approx(expected.by_count, rel=1e-5)


def test_it_is_the_likelihood_that_lm_nll_gives(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    tokens = split.rows(range(6)).tokens
    exact, enumerated = rows_of(lm, split, [1], rows=6)[0], rows_of(lm, split, [4], enumerate_orders=True)[1]
    assert exact.nats_per_token == pytest.approx(float(lm.nll(tokens, 1, "exact").nll.sum()) / 192, rel=1e-6)
    assert enumerated.likelihood == "enumerate" and enumerated.stderr == 0
    expected = float(lm.nll(tokens, 4, "enumerate").nll.sum()) / 192
    assert enumerated.nats_per_token == pytest.approx(expected, rel=1e-6)


def test_block_size_1_is_exact_and_others_are_bounds(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    one, four = rows_of(lm, split, [1, 4])
    assert (one.likelihood, one.stderr) == ("exact", 0.0)
    assert four.likelihood == "bound" and four.stderr > 0
    assert one.nats_per_token == rows_of(lm, split, [1], draws=7, seed=3)[0].nats_per_token
    assert four.nats_per_token != rows_of(lm, split, [4], seed=3)[0].nats_per_token
    assert four.tokens == 6 * 32
    assert four.perplexity == pytest.approx(math.exp(four.nats_per_token))
    bytes_per_token = split.counts.target_bytes / split.counts.target_tokens
    assert four.bits_per_byte == pytest.approx(four.nats_per_token / math.log(2) / bytes_per_token)


def test_the_standard_error_shrinks_with_draws_and_needs_two(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    assert math.isnan(rows_of(lm, split, [4], draws=1)[0].stderr)
    few, many = (rows_of(lm, split, [4], draws=draws, rows=0)[0].stderr for draws in (4, 64))
    assert 2 < few / many < 8  # 4 in expectation


def test_the_standard_error_is_that_of_the_noise(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    """Between seeds the bound scatters by as much as each run says."""
    runs = [rows_of(lm, split, [8], draws=8, seed=seed)[0] for seed in range(24)]
    scatter = torch.tensor([run.nats_per_token for run in runs], dtype=torch.float64).std().item()
    claimed = math.sqrt(sum(run.stderr**2 for run in runs) / len(runs))
    # The scatter of 24 values has a relative error of 15 %; a factor of 1.8 is more than five of these.
    assert 1 / 1.8 < scatter / claimed < 1.8


def test_the_enumerated_likelihood_is_at_most_the_bound(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    bounded, enumerated = rows_of(lm, split, [4], draws=64, enumerate_orders=True)
    assert enumerated.nats_per_token < bounded.nats_per_token + 4 * bounded.stderr
    assert len(rows_of(lm, split, [1], enumerate_orders=True)) == 1  # nothing to enumerate


def test_perplexity_of_a_model_that_has_diverged() -> None:
    assert perplexity(1000.0) == math.inf and math.isnan(perplexity(math.nan))
    assert perplexity(2.0) == math.exp(2.0)


def test_rows_without_a_target_token_are_refused(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    import numpy as np

    blank = PackedTokens(split.tokens, np.zeros(len(split.tokens), np.uint8), split.counts, 32, split.end_of_text)
    with pytest.raises(ValueError, match=r"eval\.rows: the 2 rows evaluated hold no target token"):
        bound(lm.model, blank, 4, rows=2, precision=contextlib.nullcontext)


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def test_the_table_and_eval_json(command: Command, copy_of_trained: Path) -> None:
    words = ["--checkpoint", copy_of_trained, "--block-size", 1, 4, 8, "--rows", 4, "--draws", 2]
    done = command("evaluate", *words, "--enumerate")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    for head in ("block size", "likelihood", "nats/token", "+-", "perplexity", "bits/byte"):
        assert head in lines[0]
    cells = [line.replace("<=", "<= ").replace("= ", "= ").split() for line in lines[2:-1]]
    expected = "1 exact =", "4 bound <=", "4 enumerate =", "8 bound <=", "8 enumerate ="
    assert [" ".join(row[:3]) for row in cells] == list(expected)
    saved = json.loads((copy_of_trained / "eval.json").read_text())
    assert [f"{row['nats_per_token']:.4f}" for row in saved["results"]] == [row[3] for row in cells]
    assert [f"{row['stderr']:.4f}" for row in saved["results"]] == [row[4] for row in cells]
    assert saved["settings"]["draws"] == 2 and saved["data"]["tokenizer"] == "char"
    environment = saved["environment"]
    assert (environment["device"], environment["precision"], environment["dtype"]) == ("cpu", "fp32", "float32")
    assert lines[-1] == conditions(environment) and environment["processor"] in lines[-1]
    assert f"wrote {copy_of_trained / 'eval.json'}" in done.err
    assert "warning: block_size: 8 was not trained (trained: 4, 1)" in done.err.splitlines()


def test_the_sizes_of_training_are_the_default(command: Command, copy_of_trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "elsewhere.json"
    done = command("evaluate", "--checkpoint", copy_of_trained, "--draws", 1, "--output", output)
    assert done.code == 0 and "warning" not in done.err
    results = json.loads(output.read_text())["results"]
    assert [row["block_size"] for row in results] == [4, 1]
    assert results[0]["stderr"] is None and results[1]["stderr"] == 0  # JSON has no NaN
    assert re.search(r"^ +4  bound .* nan ", done.out, re.MULTILINE)
    assert not (copy_of_trained / "eval.json").exists()


def test_it_agrees_with_the_validation_of_training(command: Command, copy_of_trained: Path) -> None:
    from hybrid.training.metrics import read_metrics

    assert command("evaluate", "--checkpoint", copy_of_trained, "--rows", 4, "--draws", 2).code == 0
    four, one = json.loads((copy_of_trained / "eval.json").read_text())["results"]
    last = read_metrics(copy_of_trained)[-1]
    assert four["nats_per_token"] == pytest.approx(last["val/nelbo/b4"], rel=1e-6)
    assert one["nats_per_token"] == pytest.approx(last["val/nelbo/b1"], rel=1e-6)
    assert four["by_count"]["2"] == pytest.approx(last["val_by_count/b4/n002"], rel=1e-6)


def test_another_corpus_and_the_training_split(command: Command, copy_of_trained: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for number in range(20):  # of different lengths: documents are told apart by their content
        (tmp_path / "other" / f"{number}.txt").write_text("the value of a list is the value of a list\n" * (number + 4))
    words = ["--checkpoint", copy_of_trained, "--rows", 4, "--block-size", 1]
    values = []
    for more in ([], ["--split", "train"], ["--data", tmp_path / "other"]):
        assert command("evaluate", *words, *more).code == 0
        saved = json.loads((copy_of_trained / "eval.json").read_text())
        values.append(saved["results"][0]["nats_per_token"])
    assert len(set(values)) == 3
    assert saved["data"]["corpus"] == str(tmp_path / "other") and "length" not in saved["settings"]
    assert command("evaluate", *words, "--data", tmp_path / "other", "--length", 8).code == 0
    cut = json.loads((copy_of_trained / "eval.json").read_text())
    assert (cut["results"][0]["tokens"], saved["results"][0]["tokens"]) == (4 * 8, 4 * 32)
    assert cut["settings"]["length"] == 8


def test_a_text_shorter_than_the_context(command: Command, copy_of_trained: Path, tmp_path: Path) -> None:
    (tmp_path / "short").mkdir()
    for word in ("value", "list"):  # each is a split
        (tmp_path / "short" / f"{word}.txt").write_text(f"the {word} of a {word}")
    words = ["--checkpoint", copy_of_trained, "--block-size", 1, "--data", tmp_path / "short"]
    refused = command("evaluate", *words)
    length = re.search(r"--data: .* rows? of 32 tokens .*; add --length (\d+), or name more text$", refused.error)
    assert refused.code == 2 and length is not None
    scored = command("evaluate", *words, "--length", length[1])
    assert scored.code == 0 and "validation_fraction" not in scored.err  # which is for training


def test_where_eval_json_goes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for path in (run, run / "checkpoints", run / "checkpoints" / "step-00000004"):
        path.mkdir(parents=True, exist_ok=True)
        assert default_output(str(path)) == run / "eval.json"
        with contextlib.chdir(path):
            assert default_output(".") == run / "eval.json"


BAD = [
    ("--block-size 0", "block_size: 0 is too small"),
    ("--length 8", "--length: 8 has no effect without --data"),
    ("--data pydocs --block-size 4 16 --length 8", "--length: 8 must be at least 16, the longest block or prompt"),
    ("--data pydocs --length 33", "at most 32, the context"),
    ("--data pydocs --length 0", "--length: 0 must be at least"),
    ("--block-size 64", "block_size: 64 is larger than data.seq_len = 32"),
    ("--block-size 1 16 --enumerate", "--enumerate: block size 16 is too long .at most 12."),
    ("--draws 0", "--draws: 0 must be at least 1"),
    ("--rows -1", "--rows: -1 must be at least 0"),
    ("--batch-rows 0", "--batch-rows: 0 must be at least 1"),
    ("--data no/such/file.txt", "no/such/file.txt"),
]


@pytest.mark.parametrize("words, message", BAD, ids=[words for words, _ in BAD])
def test_a_wrong_option_is_one_line(words: str, message: str, command: Command, copy_of_trained: Path) -> None:
    error = command("evaluate", "--checkpoint", copy_of_trained, *words.split()).error
    assert re.search(message, error), error
    assert not (copy_of_trained / "eval.json").exists()


def test_a_text_of_another_vocabulary(command: Command, copy_of_trained: Path, tmp_path: Path) -> None:
    (tmp_path / "digits.txt").write_text("12345 67890\n\n" * 500)
    error = command("evaluate", "--checkpoint", copy_of_trained, "--data", tmp_path / "digits.txt").error
    assert "character '1'" in error


def test_the_table_lines_up() -> None:
    line = SplitLikelihood(256, "bound", 12.3456, 0.01, 1.0)
    text = table([line, dataclasses.replace(line, likelihood="enumerate", stderr=0.0, bits_per_byte=2.0)])
    assert len({len(line) for line in text.splitlines()}) == 1
