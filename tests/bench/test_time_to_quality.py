"""Time to quality: what is charged for, when a curve reaches a value, and what is not repeated."""

import argparse
import math

import pytest
import torch
from conftest import Command
from toy import random_tokens, toy_model

from hybrid.bench.baselines import Dense, StraightforwardObjective
from hybrid.bench.time_to_quality import ARMS, BASELINE, Point, best_rates, crossings, reach, run, table
from hybrid.config import load_config
from hybrid.data.batches import Batch
from hybrid.experiments.measuring.trained import Trained
from hybrid.objectives import ObjectiveConfig, build_objective
from hybrid.objectives.noise import NoiseKeys


def test_both_passes_have_the_same_gradient():
    """What allows a run of the straightforward arm to be trained by the fast pass."""
    tokens, keys = random_tokens(3, 12), NoiseKeys(0, 0, torch.arange(3), 0, 3)
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    ours = build_objective(ObjectiveConfig(estimator="time", stratified=False))
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
    assert reach(curve, 2.25) == pytest.approx(4**0.75), "three quarters of it"
    assert reach(curve, 2.0) == pytest.approx(4.0)
    assert reach(curve, 3.5) == 0 and math.isinf(reach(curve, 1.0))


def test_shares_of_the_time_are_paired_by_seed():
    points = []
    for seed, shift in ((0, 0.0), (1, 1.0)):  # one seed is harder for every arm
        for name, arm in ARMS.items():
            gain = 0.0 if arm.straightforward else 0.5
            points += [Point(name, seed, t, shift + 3 - gain - math.log(t, 4)) for t in (1.0, 2.0, 4.0)]
    rows = crossings(points).cells
    assert len(rows) == 4 and all(row[2:] == ["0.50", "0.50", "0.50"] for row in rows)


def test_a_share_is_of_the_time_of_the_reference() -> None:
    """The references end at 2.0 after 8 s; one arm is there after 2 s, the other one after 16 s or never."""
    points = []
    for seed in (0, 1, 2):
        for name, arm in ARMS.items():
            late = "Muon" in name
            ours = [(1.0, 3.0), (2.0, 2.0), (16.0, 1.0)] if not late else [(1.0, 3.0), (16.0, 2.0 if seed else 2.5)]
            curve = [(1.0, 3.0), (8.0, 2.0)] if arm.straightforward else ours
            points += [Point(name, seed, seconds, nelbo) for seconds, nelbo in curve]
    rows = {(row[0], row[1]): row[2:] for row in crossings(points).cells}
    for reference in list(ARMS)[:2]:
        assert rows["ours, pairs of counts, AdamW", reference] == ["0.25", "0.25", "0.25"]
        assert rows["ours, pairs of counts, Muon", reference] == ["2.00", "2.00", "not reached"]


def test_the_best_rate_is_that_of_the_lowest_elbo_of_a_pilot(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def pilot(arguments, name, seed, fraction, rate, costs):
        asked.append((seed, fraction))
        return Point(name, seed, 1.0, abs(rate - (0.03 if ARMS[name].optimizer == "muon" else 0.008)))

    monkeypatch.setattr("hybrid.bench.time_to_quality.run", pilot)
    best = best_rates(None, {})  # type: ignore[arg-type]
    assert best == {name: 0.03 if "Muon" in name else 0.008 for name in ARMS}
    assert set(asked) == {(100, 0.25)}, "of a seed that is not compared"


@pytest.mark.parametrize("fraction, steps", [(1.0, 50), (0.5, 25), (0.001, 1)])
def test_a_run_is_charged_for_its_own_steps_and_has_the_time_of_the_baseline(
    fraction: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 steps of the baseline at 0.2 s a step are 20 s, in which an arm makes 50 of 0.4 s."""
    asked = []

    def find(config, steps, rows):
        asked.append((config.run.seed, config.optim.muon_lr, config.optim.name, steps, rows))
        return Trained(None, None, steps, 1.5)  # type: ignore[arg-type]

    monkeypatch.setattr("hybrid.experiments.measuring.trained.trained", find)
    arguments = argparse.Namespace(config=None, overrides=["trainer.steps=100"], folder="x", rows=3)
    name = "ours, pairs of counts, Muon"
    point = run(arguments, name, 4, fraction, 0.06, {BASELINE: 0.2, name: 0.4})
    assert asked == [(4, 0.06, "muon", steps, 3)]
    assert point == Point(name, 4, pytest.approx(steps * 0.4), 1.5)


def test_the_table_of_budgets() -> None:
    points = [
        Point(name, seed, t, nelbo + seed)
        for name in ARMS for seed in (0, 1) for t, nelbo in ((8.0, 1.0), (1.0, 4.0), (4.0, 2.0), (2.0, 3.0))
    ]  # fmt: skip
    found = table(points, dict.fromkeys(ARMS, 0.25), dict.fromkeys(ARMS, 0.5))
    assert list(found.columns[3:]) == ["1 s", "2 s", "4 s", "8 s"]
    cells = [f"{mean + 0.5:.4f} ± 0.5000" for mean in (4, 3, 2, 1)]
    assert [list(row) for row in found.cells] == [[name, 0.5, "250", *cells] for name in ARMS]


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_a_configuration(name):
    config = load_config("configs/bytes.yaml", ARMS[name].overrides)
    assert (config.objective.estimator == "time") is ARMS[name].straightforward


@pytest.mark.slow
def test_runs_and_timings_are_kept(command: Command, corpus, tmp_path):
    words = (
        "--config", "configs/bytes.yaml", "--seeds", 0, "--folder", tmp_path / "runs", "--rows", 2,
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
