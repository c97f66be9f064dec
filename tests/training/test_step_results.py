"""The record of training steps, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from hybrid.training import step_results
from hybrid.training.step import StepResult
from hybrid.training.step_results import Window


def step(number: int, loss: float, ar: float | None, norm: float, size: int) -> StepResult:
    numbers = torch.tensor([loss, norm] if ar is None else [loss, ar, norm], dtype=torch.float64)
    names = ("nelbo",) if ar is None else ("loss", "ar_nll")
    return StepResult(number, numbers, names, size, {"lr": number / 10})


def test_a_record_of_training_is_a_mean_over_its_finite_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 12.0])
    monkeypatch.setattr(step_results.time, "perf_counter", lambda: next(now))
    window = Window()
    window.results = [step(1, 2.0, 5.0, 1.0, 4), step(2, math.inf, 5.0, 3.0, 4), step(3, 4.0, 6.0, 2.0, 8)]
    window.results += [step(4, 3.0, 7.0, 6.0, 4)]
    assert window.metrics(100) == {
        "perf/tokens_per_second": 200.0,  # four steps in two seconds, whether they were finite or not
        "train/loss": 3.0, "train/ar_nll": 6.0, "optim/grad_norm": 3.0, "optim/lr": 0.4,
        "train/loss/b4": 2.5, "train/loss/b8": 4.0,
    }  # fmt: skip
    now = iter([0.0, 1.0])
    window = Window()
    window.results = [step(1, 2.0, None, 1.0, 1)]
    assert set(window.metrics(1)) == {"perf/tokens_per_second", "train/nelbo", "optim/grad_norm", "optim/lr"}
