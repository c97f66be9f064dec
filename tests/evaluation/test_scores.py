"""Likelihoods of a split by block size and by order: the lines of the table."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np
import pytest

import hybrid
from hybrid.data.batches import PackedTokens
from hybrid.decoding import DECODERS
from hybrid.evaluation.scores import Scores, notes, table
from hybrid.evaluation.setting import choose_decoders
from hybrid.likelihoods import LIKELIHOODS
from hybrid.likelihoods.rows import SplitLikelihood

pytestmark = pytest.mark.usefixtures("any_size_may_be_asked_for")


def scores_of(lm: hybrid.LanguageModel, split: PackedTokens, **options: Any) -> Scores:
    return Scores(lm, split, contextlib.nullcontext, **{"rows": 4, "draws": 3, "batch_rows": 3, **options})


def test_every_order_is_the_likelihood_that_lm_nll_gives(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    decoders = choose_decoders(["all", "confidence:token=best"], "--orders")
    lines = scores_of(lm, split).lines([4], decoders=decoders, every=True)
    tokens = split.rows(range(4)).tokens
    found = {(line.likelihood, line.decoder): line for line in lines}
    listed = [label for method, label in found if method == "policy"]
    assert {"left_to_right", "margin", "entropy", "confidence:token=best"} <= set(listed)
    assert not {"first_hitting", "ancestral", "confidence"} & set(listed)
    expected: dict[tuple[str, str | None], dict[str, Any]] = {
        ("policy", "margin"): {"method": "policy", "decoder": "margin"},
        ("policy", "confidence:token=best"): {"method": "policy", "decoder": decoders["confidence:token=best"]},
        ("tightest", None): {"method": "policy", "decoder": [decoders[label] for label in listed]},
        ("importance", None): {"method": "importance", "draws": 3},
        ("enumerate", None): {"method": "enumerate"},
        ("best_order", None): {"method": "best_order"},
    }
    for key, options in expected.items():
        value = float(lm.nll(tokens, 4, **options).nll.sum()) / tokens.numel()
        assert found[key].nats_per_token == pytest.approx(value, rel=1e-6), key
        assert found[key].tokens == tokens.numel()
    assert found["importance", None].stderr > 0 and found["policy", "margin"].stderr == 0
    best, tightest = (found[name, None].nats_per_token for name in ("best_order", "tightest"))
    assert best <= tightest <= min(found["policy", label].nats_per_token for label in listed)


def test_orders_do_not_depend_on_the_batch(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    decoders = choose_decoders(["margin", "left_to_right"], "--orders")
    lines = [scores_of(lm, split, batch_rows=n).lines([4], decoders=decoders, every=True) for n in (1, 3, 100)]
    for other in lines[1:]:
        for a, b in zip(lines[0], other, strict=True):
            assert a.nats_per_token == pytest.approx(b.nats_per_token, rel=1e-5), a.likelihood


def test_one_order_is_all_there_is_at_block_size_1(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    scores = scores_of(lm, split)
    (line,) = scores.lines([1], True, choose_decoders(["all"], "--orders"), every=True)
    assert line.likelihood == "exact"
    assert scores.policy(1, "margin", DECODERS["margin"]()) == pytest.approx(line.nats_per_token, rel=1e-6)


def test_a_decoder_without_a_policy_that_was_asked_for(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    scores = scores_of(lm, split)
    with pytest.raises(ValueError, match=r"decoder: .* is random, so it has no policy likelihood"):
        scores.lines([4], decoders=choose_decoders(["first_hitting"], "--orders"))
    assert scores.policy(4, "first_hitting", DECODERS["first_hitting"]()) is None


def test_a_likelihood_that_fails_is_not_left_out(
    lm: hybrid.LanguageModel, split: PackedTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry that cannot be built is; one that goes wrong on the way is a fault."""

    def fails(*_: Any) -> None:
        raise ValueError("a real fault")

    monkeypatch.setattr(LIKELIHOODS["importance"], "nll", fails)
    with pytest.raises(ValueError, match="a real fault"):
        scores_of(lm, split).lines([4], every=True)


def test_a_policy_is_evaluated_once(
    lm: hybrid.LanguageModel, split: PackedTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = scores_of(lm, split)
    line = scores.lines([4], decoders=choose_decoders(["margin"], "--orders"))[-1]
    monkeypatch.setattr("hybrid.evaluation.scores.by_row", None)
    assert scores.policy(4, "margin", None) == line.nats_per_token


def test_given_tokens_do_not_count(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    half = PackedTokens(
        split.tokens, (np.arange(len(split.tokens)) % 2).astype(np.uint8), split.counts, 32, split.end_of_text
    )
    line = scores_of(lm, half).lines([4], decoders=choose_decoders(["left_to_right"], "--orders"))[-1]
    assert line.tokens == 4 * 16
    everything = scores_of(lm, split).lines([4], decoders=choose_decoders(["left_to_right"], "--orders"))[-1]
    assert line.nats_per_token != pytest.approx(everything.nats_per_token, rel=1e-3)


def test_hindsight_is_marked() -> None:
    line = SplitLikelihood(4, "policy", 1.5, 0.0, 1.0, decoder="confidence:token=best")
    lines = [line, dataclasses.replace(line, likelihood="best_order", decoder=None)]
    text = table(lines).splitlines()
    assert len({len(line) for line in text}) == 1
    assert "policy confidence:token=best  =   1.5" in text[2] and "~   1.5" in text[3]
    assert len(notes(lines)) == 1 and notes(lines[:1]) == []
