"""Texts by the reverse process, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from toy import toy_model

from hybrid.experiments.reverse_process.joint_sampler import (
    FLOAT32,
    Joint,
    decoupled,
)
from hybrid.experiments.reverse_process.step_by_step import generate, predict


@pytest.mark.parametrize("block_size", [3, 8])
@pytest.mark.parametrize("sampler", [Joint(FLOAT32), decoupled], ids=["joint", "decoupled"])
def test_texts_are_whole_and_cost_a_forward_per_change(block_size: int, sampler: Callable) -> None:
    model = toy_model(dtype=torch.float32)
    forwards = []
    model.register_forward_pre_hook(lambda module, arguments: forwards.append(len(arguments[0])))
    texts = generate(model, sampler, 5, 8, block_size, 300, seed=0)
    assert ((texts.tokens >= 0) & (texts.tokens < 7)).all()
    assert sum(forwards) == texts.forwards * 5 and texts.forwards <= 8, "only rows that changed, only when they did"
    assert texts.rate == pytest.approx(1, abs=1), "40 tokens"
    again = generate(model, sampler, 5, 8, block_size, 300, seed=0)
    assert torch.equal(texts.tokens, again.tokens)
    other = generate(model, sampler, 5, 8, block_size, 300, seed=1)
    assert not torch.equal(texts.tokens, other.tokens)


def test_the_schedule_is_linear() -> None:
    """Each of T steps reveals 1/T of all tokens on average: of what is still masked before step i, 1 / (T - i)."""
    seen = []

    def nothing_before_the_end(log_probs, law, q, generator):
        seen.append((q, len(law)))
        none = torch.empty(0, dtype=torch.long)
        return decoupled(log_probs, law, q, generator) if q == 1 else (none, none)

    texts = generate(toy_model(dtype=torch.float32), nothing_before_the_end, 2, 6, 6, 4, seed=0)
    assert seen == [(1 / 4, 12), (1 / 3, 12), (1 / 2, 12), (1, 12)]
    assert texts.rate == 0 and texts.forwards == 1 and (texts.tokens < 7).all()


def test_one_step_reveals_all_in_one_forward() -> None:
    texts = generate(toy_model(dtype=torch.float32), decoupled, 3, 8, 8, 1, seed=0)
    assert texts.forwards == 1 and math.isnan(texts.rate) and (texts.tokens < 7).all()


def test_kept_predictions_are_those_that_would_be_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model("causal", "next_token", dtype=torch.float32)
    now: dict[str, Any] = {}

    def remember(model, tokens, rows, start, block_size, log_probs) -> None:
        now.update(tokens=tokens, start=start, shape=log_probs.shape)
        predict(model, tokens, rows, start, block_size, log_probs)

    def check(log_probs, law, q, generator):
        anew = torch.empty(now["shape"])
        predict(model, now["tokens"], torch.arange(4), now["start"], 3, anew)
        assert torch.allclose(log_probs[law], anew.flatten(0, 1)[law], atol=1e-5)
        return decoupled(log_probs, law, q, generator)

    monkeypatch.setattr("hybrid.experiments.reverse_process.step_by_step.predict", remember)
    generate(model, check, 4, 8, 3, 20, seed=0)
    assert now["start"] == 6, "it came to the last block"
