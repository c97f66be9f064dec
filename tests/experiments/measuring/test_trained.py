"""Runs that experiments train: the ELBO that they reach, and the time of their steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import Configure
from text_figures import per_token

from hybrid.data.batches import PackedTokens
from hybrid.experiments.measuring import trained
from hybrid.experiments.measuring.trained import elbo
from hybrid.lm import LanguageModel


def test_the_elbo_of_a_run_is_that_of_its_first_rows(lm: LanguageModel, split: PackedTokens) -> None:
    tokens = split.rows(range(6)).tokens
    whole = per_token(lm, tokens, 4, "bound", draws="all")
    assert elbo(lm, split, 4, 6, draws=400) == pytest.approx(whole, rel=0.01)  # 8,000 draws of a row: an error of 0.2%
    assert elbo(lm, split, 1, 6, draws=1) == pytest.approx(per_token(lm, tokens, 1, "exact"))


def test_a_trained_run_is_judged_at_the_first_of_its_block_sizes(
    lm: LanguageModel, split: PackedTokens, configure: Configure, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained, "train", lambda config, folder, steps: steps + 1)
    monkeypatch.setattr("hybrid.lm.load", lambda folder, device: lm)
    got = trained.trained(configure(tmp_path), 7, rows=6)
    assert got.steps == 8 and got.nelbo == elbo(lm, split, 4, 6, draws=8)


def test_the_time_of_a_step_is_a_share_of_what_was_timed() -> None:
    """The first stepper takes a second a step, the other one two; each step has a number of its own."""
    now, steps = 0.0, {"a": [], "b": []}

    def stepper(name: str, seconds: float) -> Any:
        def run(step: int) -> None:
            nonlocal now
            steps[name].append(step)
            now += seconds

        return run

    steppers = {"a": stepper("a", 1.0), "b": stepper("b", 2.0)}
    found = trained.step_seconds(steppers, 3, torch.device("cpu"), clock=lambda: now)
    assert found == {"a": 1.0, "b": 2.0} and steps["a"] == steps["b"] == list(range(20))
