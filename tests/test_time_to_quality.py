"""Time to quality: what is charged for, when a curve reaches a value, and what is not repeated."""

import math

import pytest
import torch
from conftest import Command
from toy import random_tokens, toy_model

from hybrid.bench.baselines import Dense, StraightforwardObjective
from hybrid.bench.time_to_quality import ARMS, Point, crossings, reach
from hybrid.config import load_config
from hybrid.data import Batch
from hybrid.noise import Keys
from hybrid.objective import Objective, ObjectiveConfig


def test_both_passes_have_the_same_gradient():
    """What allows a run of the straightforward arm to be trained by the fast pass."""
    tokens, keys = random_tokens(3, 12), Keys(0, 0, torch.arange(3), 0, 3)
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    ours = Objective.of(ObjectiveConfig(estimator="time", stratified=False))
    gradients = []
    for objective in (ours, StraightforwardObjective.like(ours)):
        model = toy_model(n_kv_heads=4)
        if objective is not ours:
            model.attend = Dense()
        objective.loss(model, batch, keys, 4).total.backward()
        gradients.append([p.grad for p in model.parameters()])
    for mine, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-6)


def test_reaching_a_value_between_two_points():
    curve = [Point("", 0, 1.0, 3.0), Point("", 0, 4.0, 2.0), Point("", 0, 8.0, 2.0)]
    assert reach(curve, 2.5) == pytest.approx(2.0), "half of the way in log time"
    assert reach(curve, 2.0) == pytest.approx(4.0)
    assert reach(curve, 3.5) == 0 and math.isinf(reach(curve, 1.0))


def test_shares_of_the_time_are_paired_by_seed():
    points = []
    for seed, shift in ((0, 0.0), (1, 1.0)):  # one seed is harder for every arm
        for name, arm in ARMS.items():
            gain = 0.0 if arm.straightforward else 0.5
            points += [Point(name, seed, t, shift + 3 - gain - math.log(t, 4)) for t in (1.0, 2.0, 4.0)]
    rows = crossings(points).rows
    assert len(rows) == 4 and all(row[2:] == ["0.50", "0.50", "0.50"] for row in rows)


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_a_configuration(name):
    config = load_config("configs/quickstart.yaml", ARMS[name].overrides)
    assert (config.objective.estimator == "time") is ARMS[name].straightforward


def test_runs_and_timings_are_kept(command: Command, corpus, tmp_path):
    words = (
        "--config", "configs/quickstart.yaml", "--seeds", 0, "--folder", tmp_path / "runs", "--rows", 2,
        "--output", tmp_path / "table.md", f"data.corpus={corpus}", "data.tokenizer=char", "data.seq_len=32",
        "data.validation_fraction=0.2", "model.dim=16", "model.n_layers=1", "model.n_heads=2", "trainer.steps=4",
        "trainer.batch_tokens=64", "optim.warmup_steps=1",
    )  # fmt: skip
    first = command("bench.time_to_quality", *words)
    assert first.code == 0, first.err
    assert (tmp_path / "table.png").is_file()
    again = command("bench.time_to_quality", *words)
    assert again.code == 0 and "step 4/4" not in again.err
    assert again.out == first.out
