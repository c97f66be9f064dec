"""The numbers of a validation, by hand: means over rows and block sizes, and rates."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from toy import nll_of

from hybrid.data.batches import PackedTokens
from hybrid.data.packing import Counts
from hybrid.decoding.engine import Generation
from hybrid.evaluation.scores import Scores
from hybrid.likelihoods import rows
from hybrid.likelihoods.enumerated import Enumerate
from hybrid.likelihoods.rows import RowLikelihoods, SplitLikelihood, bound, by_row
from hybrid.lm import LanguageModel
from hybrid.training import validation
from hybrid.training.validation import EvalConfig, SampleWriter, Validator


def test_a_record_of_validation_is_a_mean_over_block_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def bounded(model: Any, split: Any, size: int, **options: Any) -> SplitLikelihood:
        asked.append({name: options[name] for name in ("rows", "draws", "batch_rows")})
        name = "exact" if size == 1 else "bound"
        return SplitLikelihood(size, name, float(size), size / 100, size / 2, 9, {1: 0.5, size: 1.5})

    monkeypatch.setattr(validation, "bound", bounded)
    config = EvalConfig(rows=7, draws=3, batch_rows=5)
    tokens = PackedTokens(np.zeros(8, np.uint8), None, Counts(1, 8, 16, 8, 16), 4, 7)  # two bytes each
    metrics = Validator(None, tokens, [1, 3], config, contextlib.nullcontext)()  # type: ignore[arg-type]
    assert asked == [{"rows": 7, "draws": 3, "batch_rows": 5}] * 2
    assert metrics == {
        "val/nelbo": 2.0, "val/bits_per_byte": pytest.approx(1.0 / math.log(2)), "val/perplexity": math.exp(2.0),
        "val/nelbo/b1": 1.0, "val/stderr/b1": 0.01, "val/likelihood/b1": "exact", "val_by_count/b1/n001": 1.5,
        "val/nelbo/b3": 3.0, "val/stderr/b3": 0.03, "val/likelihood/b3": "bound",
        "val_by_count/b3/n001": 0.5, "val_by_count/b3/n003": 1.5,
    }  # fmt: skip


def test_metrics_of_samples(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def generate(engine: Any, ids: Any, new: int, ranks: Any) -> Generation:
        asked.append((ids, new))
        return Generation([[1, 2, 3], [4]], nfe=2, seconds=0.5)

    monkeypatch.setattr(validation, "generate_shared", generate)
    _, metrics = SampleWriter(lm.engine(), lm.tokenizer, ["", "The"], 100)()
    assert metrics == {"gen/tokens_per_second": 8.0, "gen/tokens_per_forward": 1.0}
    assert asked == [([[], lm.tokenizer.encode("The")], 29)], "what fits into 32 tokens behind the longest prompt"


def test_a_bound_is_the_sum_over_rows_and_its_errors_add_in_quadrature(lm: LanguageModel, split: PackedTokens) -> None:
    """The noise of a row of the split is keyed by its number."""
    tokens, n_rows = split.rows(range(5)).tokens, torch.arange(5)
    with torch.no_grad():
        rows = nll_of(lm.model, tokens, 4, draws=3, seed=2, keys=n_rows)
    got = bound(lm.model, split, 4, rows=5, draws=3, batch_rows=2, seed=2, precision=contextlib.nullcontext)
    assert got.nats_per_token == pytest.approx(float(rows.nll.sum()) / 160, rel=1e-6)
    assert got.stderr == pytest.approx(float((rows.stderr**2).sum().sqrt()) / 160, rel=1e-5)
    assert got.tokens == 160
    assert got.bits_per_byte == pytest.approx(
        float(rows.nll.sum()) / math.log(2) / (160 * split.counts.target_bytes / split.counts.target_tokens), rel=1e-6
    )


def test_losses_by_count_are_means_over_blocks_in_ranges_named_by_their_ends() -> None:
    assert rows._ranges([9.0, 2.0, 6.0, 0.0], [3.0, 1.0, 2.0, 0.0]) == {1: 2.0, 2: 3.0}
    sums, counts = [0.0, *(float(n) for n in range(1, 33))], [0.0, *[1.0] * 32]
    assert rows._ranges(sums, counts) == {n: n - 0.5 for n in range(2, 33, 2)}
    sums, counts = [0.0, *[2.0] * 17], [0.0, *[1.0] * 16, 3.0]
    assert rows._ranges(sums, counts) == {**dict.fromkeys(range(2, 17, 2), 2.0), 17: pytest.approx(2 / 3)}


def test_a_line_over_rows_by_hand(lm: LanguageModel, split: PackedTokens) -> None:
    """Sums over rows; errors of independent noise add in quadrature; target tokens are counted."""
    columns = ([4.0, 6.0], [3.0, 4.0], [2, 3])
    rows = RowLikelihoods(*map(torch.tensor, columns), torch.zeros(2, 0))
    line = Scores(lm, split, contextlib.nullcontext)._line(4, "importance", rows)
    assert (line.nats_per_token, line.stderr, line.tokens) == pytest.approx((2.0, 1.0, 5))
    found = by_row(lm.model, split, 4, Enumerate(), rows=2, precision=contextlib.nullcontext)
    assert found.tokens.tolist() == [32, 32]
