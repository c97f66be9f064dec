"""Whole objectives and their parts are added by a class and a line; nothing in hybrid/ changes."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import Command, Configure
from torch import Tensor
from training_toy import train

from hybrid.objectives import ESTIMATORS, OBJECTIVES, PROPOSALS, SCHEDULES, WEIGHTINGS
from hybrid.objectives.estimators import Masking
from hybrid.objectives.noise import NoiseKeys, position_uniforms
from hybrid.objectives.proposals import normalised
from hybrid.objectives.schedules import Schedule
from hybrid.objectives.weightings import Weighting
from hybrid.options import option
from hybrid.training.metrics import read_metrics


@pytest.fixture
def module() -> Iterator[str]:
    """A module of a user's own, which is not imported yet."""
    yield "user_distillation"
    sys.modules.pop("user_distillation", None)
    OBJECTIVES.pop("from_teacher", None)


def test_an_objective_with_a_teacher(module: str, configure: Configure, trained: Path, tmp_path: Path) -> None:
    words = [f"run.imports=[{module}]", "objective.name=from_teacher", f"objective.teacher={trained}"]
    folder = train(configure(tmp_path, *words, "objective.draws=2", "trainer.steps=16", "optim.lr=0.02"))
    losses = [record["train/loss"] for record in read_metrics(folder) if "train/loss" in record]
    assert losses[-1] < 0.5 * losses[0] and all(loss > 0 for loss in losses)
    words += [f"trainer.init_from={trained}", "trainer.steps=1", "trainer.log_every=1", "run.name=same"]
    same = read_metrics(train(configure(tmp_path, *words, "objective.name.temperature=0.5")))
    assert abs(same[0]["train/loss"]) < 1e-6, "it begins as its teacher"
    record = json.loads((folder / "environment.json").read_text())
    assert record["teacher"]["step"] == 8 and len(record["teacher"]["sha256"]) == 64


@pytest.fixture
def loss_of(configure: Configure, tmp_path: Path) -> Callable[..., float]:
    """loss_of(*overrides) -> that of the first of two steps."""

    def train_two(*words: str) -> float:
        name = f"run.name=r{len(list(tmp_path.iterdir()))}"
        folder = train(configure(tmp_path, name, "trainer.steps=2", "trainer.log_every=1", *words))
        return next(value for tag, value in read_metrics(folder)[0].items() if tag.startswith("train/"))

    return train_two


def test_an_estimator(monkeypatch: pytest.MonkeyPatch, loss_of: Callable[..., float]) -> None:
    """With a share of 1 it is BERT's loss of all tokens; with less it is another."""

    @dataclass(frozen=True)
    class Share:
        """Every token is masked with the same probability."""

        share: float = option(0.5, "of the tokens")

        def draw(self, noise: NoiseKeys, is_target: Tensor, block_size: int, draws: int, stratified: bool) -> Masking:
            masked = (position_uniforms(noise, is_target.shape[1], draws) < self.share) & is_target[:, None]
            return Masking(masked, masked / self.share)

    monkeypatch.setitem(ESTIMATORS, "share", Share)
    everything = loss_of("objective.weighting={name: bert, share: 1.0}")
    assert loss_of("objective.estimator={name: share, share: 1.0}") == pytest.approx(everything, rel=1e-6)
    assert loss_of("objective.estimator=share") != pytest.approx(everything, rel=1e-3)


@pytest.mark.slow
def test_a_schedule(monkeypatch: pytest.MonkeyPatch, loss_of: Callable[..., float]) -> None:
    """One that is the linear one trains the same; the decoder of the samples takes it, too."""

    @dataclass(frozen=True)
    class Straight(Schedule):
        """alpha = 1 - t."""

        def alpha(self, t: Tensor) -> Tensor:
            return 1 - t

        def derivative(self, t: Tensor) -> Tensor:
            return torch.full_like(t, -1.0)

    monkeypatch.setitem(SCHEDULES, "straight", Straight)
    words = ("objective.estimator=time", "decoder={name: ancestral, schedule: straight}")
    assert loss_of(*words, "objective.schedule=straight") == pytest.approx(loss_of(*words), rel=1e-6)


@pytest.mark.slow
def test_a_weighting_and_a_proposal(monkeypatch: pytest.MonkeyPatch, loss_of: Callable[..., float]) -> None:
    """They are the plain cross-entropy and n ~ pi(n), once more."""

    @dataclass(frozen=True)
    class ByCount(Weighting):
        """omega_n ~ n."""

        def of_counts(self, n_targets: int) -> Tensor:
            return n_targets * normalised(torch.arange(n_targets) + 1)

    @dataclass(frozen=True)
    class Rising:
        """pi(n) ~ n."""

        def probabilities(self, n_targets: int, block_size: int) -> Tensor:
            return normalised(torch.arange(n_targets) + 1)

    monkeypatch.setitem(WEIGHTINGS, "by_count", ByCount)
    monkeypatch.setitem(PROPOSALS, "rising", Rising)
    theirs = loss_of("objective.weighting=uniform", "objective.proposal={name: power, exponent: 1.0}")
    assert loss_of("objective.weighting=by_count", "objective.proposal=rising") == pytest.approx(theirs, rel=1e-6)
    assert loss_of() != pytest.approx(theirs, rel=1e-3)


def test_what_is_added_stands_in_the_help(module: str, command: Command) -> None:
    importlib.import_module(module)
    text = " ".join(command("train.py", "--help").out.split())
    assert "from_teacher: KL(teacher || model) at the masked tokens. temperature=1.0 (float) of both" in text
    assert "estimator=" not in text[text.index("from_teacher:") :].split("objective.block_size")[0], "is no option"
