"""Short training runs for the tests: run one, look at its checkpoints, interfere with its steps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hybrid.config import Config
from hybrid.runs.run import Run
from hybrid.training.step import Share, Stepper, StepResult


def train(config: Config) -> Path:
    run = Run.of(config)
    run.open()
    run.train()
    return run.folder


def tensors_of(step_folder: Path) -> dict[str, Tensor]:
    return {
        f"{file.stem}/{name}": tensor
        for file in sorted(step_folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_same_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def before_step(monkeypatch: pytest.MonkeyPatch, action) -> None:
    """Call action(step) before every optimizer step."""
    original = Stepper.__call__

    def call(self: Stepper, step: int) -> StepResult:
        action(step)
        return original(self, step)

    monkeypatch.setattr(Stepper, "__call__", call)


def break_steps(monkeypatch: pytest.MonkeyPatch, bad, what: str) -> None:
    """Make the loss or the gradient NaN at the steps for which bad(step)."""
    original = Stepper.accumulate

    def accumulate(self: Stepper, step: int) -> Share:
        share = original(self, step)
        if bad(step) and what == "gradient":
            next(self.model.parameters()).grad.view(-1)[0] = math.inf
        return share._replace(losses=share.losses * math.nan) if bad(step) and what == "loss" else share

    monkeypatch.setattr(Stepper, "accumulate", accumulate)


ALWAYS_SAVE = ["trainer.save_every=1", "trainer.keep_last=99", "trainer.eval_every=0", "trainer.log_every=1"]
