"""How long does it take to reach a given ELBO? Against the straightforward pass with the plain time-form objective.

    python -m hybrid.bench.time_to_quality --config configs/bytes.yaml objective.block_size=16

The first arm is the obvious implementation: one dense pass over [clean; noisy], independent times of the linear
schedule, AdamW. It gets the configured number of steps, and every arm is trained for the same time, and for a half, a
quarter and an eighth of it, each a run of its own whose learning rate falls to its end. What counts is when the others
reach the ELBO at which the first one ends.

The two passes have equal gradients (tests/bench/test_time_to_quality.py), so every run trains with the fast one and is
charged for the steps of its own, which are timed in turn beforehand: other work on the machine while the runs train
spoils nothing. The peak learning rate of every arm is the best of a few in a pilot run of another seed. Runs and
timings that are there already are not repeated; those of other settings, of another text or machine are refused.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid import cli
from hybrid.options import at_least, title
from hybrid.results.table import Table, column, plus_minus, standard_error

if TYPE_CHECKING:
    from hybrid.config import Config

log = logging.getLogger("hybrid.bench.time_to_quality")
FRACTIONS = (1.0, 0.5, 0.25, 0.125)
PILOT_SEED, PILOT_FRACTION = 100, 0.25
TIMED_ROUNDS = 9
TIME_FORM = ["objective.estimator=time", "objective.stratified=false", "objective.draws=1"]
COUNT_PAIRS = ["objective.complementary=true", "objective.draws=2"]


@dataclass(frozen=True)
class Arm:
    """What is trained how. `rates` are the peak learning rates to choose from, of the optimizer's main part."""

    optimizer: str
    overrides: list[str]
    straightforward: bool = False

    @property
    def rate_key(self) -> str:
        return "optim.muon_lr" if self.optimizer == "muon" else "optim.lr"

    @property
    def rates(self) -> list[float]:
        return [0.015, 0.03, 0.06] if self.optimizer == "muon" else [0.002, 0.004, 0.008, 0.016]


ARMS = {
    "straightforward, time form, AdamW": Arm("adamw", TIME_FORM, straightforward=True),
    "straightforward, time form, Muon": Arm("muon", TIME_FORM, straightforward=True),
    "ours, pairs of counts, AdamW": Arm("adamw", COUNT_PAIRS),
    "ours, pairs of counts, Muon": Arm("muon", COUNT_PAIRS),
}
BASELINE = next(iter(ARMS))


def arms() -> dict[str, Any]:
    """Tell what the arms are, for the record."""
    return {f"arm {name}": dataclasses.asdict(arm) for name, arm in ARMS.items()}


@dataclass(frozen=True)
class Point:
    """Where a run ended: seconds of training, and the ELBO in nats per token."""

    arm: str
    seed: int
    seconds: float
    nelbo: float


def main() -> int:
    arguments = parse()
    from hybrid.experiments.measuring.remembered import basis, remembered
    from hybrid.results.publish import publish, refuse_foreign

    refuse_foreign(arguments.output, plots=1)
    made_from = {**basis(configure(arguments, BASELINE, 0, ARMS[BASELINE].rates[0], "")), **arms()}
    folder = Path(arguments.folder)
    costs = remembered(folder / "costs.json", made_from, lambda kept: kept or step_seconds(arguments))
    made_from |= {"rows": arguments.rows, "costs": costs}
    rates = remembered(folder / "rates.json", made_from, lambda kept: kept or best_rates(arguments, costs))
    points = []
    for seed in arguments.seeds:
        for name in ARMS:
            for fraction in FRACTIONS:
                points.append(run(arguments, name, seed, fraction, rates[name], costs))
                log.info("%s, seed %d, %.0f s: %.4f", name, seed, points[-1].seconds, points[-1].nelbo)
    parts = [_explanation(arguments), table(points, costs, rates), crossings(points)]
    plots = {"ELBO against training time": plot(points)}
    publish(arguments.output, "hybrid.bench.time_to_quality", "Time to quality", arguments.seeds, parts, plots)
    return 0


def configure(arguments: argparse.Namespace, name: str, seed: int, rate: float, tag: str) -> Config:
    from hybrid.config import load_config
    from hybrid.experiments.measuring.trained import settings
    from hybrid.sweep.plan import slug

    arm = ARMS[name]
    own = settings(arguments.folder, f"{slug(name.lower())}-{tag}", seed)
    own += [f"optim.name={arm.optimizer}", f"{arm.rate_key}={rate}"]
    return load_config(arguments.config, [*arguments.overrides, *arm.overrides, *own])


def step_seconds(arguments: argparse.Namespace) -> dict[str, float]:
    """Time the optimizer steps of the arms in turn; return the median wall-clock of each."""
    from hybrid.bench.baselines import Dense, StraightforwardObjective
    from hybrid.experiments.measuring import trained
    from hybrid.objectives import MaskedObjective
    from hybrid.runs.run import Run

    steppers, device = {}, None
    for name, arm in ARMS.items():
        started = Run.of(configure(arguments, name, 0, arm.rates[0], "timing"))
        stepper, device = started.stepper(), started.machine.device
        if arm.straightforward:
            assert isinstance(stepper.objective, MaskedObjective)
            stepper.objective = StraightforwardObjective.like(stepper.objective)
            stepper.model.attend = Dense()
        steppers[name] = stepper
    assert device is not None
    return trained.step_seconds(steppers, TIMED_ROUNDS, device)


def best_rates(arguments: argparse.Namespace, costs: dict[str, float]) -> dict[str, float]:
    """Find the learning rate of each arm that gives the lowest ELBO in a pilot run."""
    best = {}
    for name, arm in ARMS.items():
        found = {rate: run(arguments, name, PILOT_SEED, PILOT_FRACTION, rate, costs).nelbo for rate in arm.rates}
        log.info("%s: %s", name, ", ".join(f"{rate}: {nelbo:.4f}" for rate, nelbo in found.items()))
        best[name] = min(found, key=lambda rate: found[rate])
    return best


def run(
    arguments: argparse.Namespace, name: str, seed: int, fraction: float, rate: float, costs: dict[str, float]
) -> Point:
    """Train for a fraction of the first arm's time, if that is not done yet, and evaluate with fixed noise."""
    from hybrid.experiments.measuring.trained import trained

    tag = f"{fraction:g}" + (f"-lr{rate:g}" if seed == PILOT_SEED else "")
    config = configure(arguments, name, seed, rate, tag)
    steps = max(round(fraction * config.trainer.steps * costs[BASELINE] / costs[name]), 1)
    return Point(name, seed, steps * costs[name], trained(config, steps, arguments.rows).nelbo)


@dataclass(frozen=True)
class ArmRow:
    """One arm: by seconds of training the ELBO of each seed."""

    arm: str = column("arm")
    rate: float = column("peak rate")
    ms: float = column("ms a step", ".0f")
    nelbo: dict[float, list[float]] = column("{:.0f} s", partial(plus_minus, digits=4))


def table(points: list[Point], costs: dict[str, float], rates: dict[str, float]) -> Table:
    """Tabulate the ELBO of each arm after each fraction of the time."""
    longest = max(p.seconds for p in points)
    budgets = [fraction * longest for fraction in sorted(FRACTIONS)]
    rows = []
    for name in ARMS:
        by_budget = [[p.nelbo for p in ends] for ends in zip(*_curves(points, name).values(), strict=True)]
        rows.append(ArmRow(name, rates[name], 1e3 * costs[name], dict(zip(budgets, by_budget, strict=True))))
    return Table(rows, "ELBO, nats per token, after training for")


def _ratio(value: float) -> str:
    if value == 0:
        return f"below {min(FRACTIONS):g}"
    return "not reached" if value == np.inf else f"{value:.2f}"


@dataclass(frozen=True)
class CrossingRow:
    """When an arm is where a straightforward one ends, in shares of the time of that one, over seeds."""

    arm: str = column("arm")
    reference: str = column("reaches the end of")
    median: float = column("in this share of its time (median)", _ratio)
    least: float = column("least", _ratio)
    most: float = column("most", _ratio)


def crossings(points: list[Point]) -> Table:
    """Tabulate when each arm reaches the ELBO at which a straightforward one ends."""
    rows = []
    for reference in (name for name, arm in ARMS.items() if arm.straightforward):
        ends = {seed: curve[-1] for seed, curve in _curves(points, reference).items()}
        for name, arm in ARMS.items():
            if arm.straightforward:
                continue
            curves = _curves(points, name)
            ratios = [reach(curves[seed], end.nelbo) / end.seconds for seed, end in ends.items()]
            rows.append(CrossingRow(name, reference, float(np.median(ratios)), min(ratios), max(ratios)))
    return Table(rows)


def reach(curve: list[Point], nelbo: float) -> float:
    """Interpolate when the curve is as low as `nelbo`, in seconds, linear in log time between points.

    Returns 0 if it begins there, and infinity if it never is.
    """
    if curve[0].nelbo <= nelbo:
        return 0.0
    for before, after in pairwise(curve):
        if after.nelbo <= nelbo:
            share = (before.nelbo - nelbo) / (before.nelbo - after.nelbo)
            return before.seconds * (after.seconds / before.seconds) ** share
    return float("inf")


def plot(points: list[Point]) -> np.ndarray:
    from hybrid.results.plot import Panel, curves

    lines: dict[str, Any] = {}
    for name in ARMS:
        columns = list(zip(*_curves(points, name).values(), strict=True))
        values = [[p.nelbo for p in column] for column in columns]
        seconds = [float(np.mean([p.seconds for p in column])) for column in columns]
        errors = [standard_error(v) if len(v) > 1 else 0.0 for v in values]
        lines[name] = (seconds, [float(np.mean(v)) for v in values], errors)
    end = lines[BASELINE][1][-1]
    panel = Panel("", "training time, seconds", "ELBO, nats per token", lines, {"where the baseline ends": end})
    return curves([panel])


def _curves(points: list[Point], name: str) -> dict[int, list[Point]]:
    """Sort the points of an arm by time; return them by seed."""
    found: dict[int, list[Point]] = {}
    for point in sorted(points, key=lambda p: p.seconds):
        if point.arm == name:
            found.setdefault(point.seed, []).append(point)
    return found


def _explanation(arguments: argparse.Namespace) -> str:
    from hybrid.experiments.measuring.trained import DRAWS, TIMED_STEPS, trained_at

    c = configure(arguments, BASELINE, 0, ARMS[BASELINE].rates[0], "")
    return f"""\
Corpus {title(c.data.corpus)}, block size {c.objective.block_size}, {c.model.n_layers} layers of {c.model.dim}, rows
of {c.data.seq_len}, {c.trainer.batch_tokens:,} tokens a step. Every figure is a run of its own, its learning rate
fallen to the end; ± is the standard error over seeds. The ELBO is that of {arguments.rows or "all"} validation rows
with {DRAWS} draws of the same noise for all. Time is steps times the median of a step, timed in turns ({TIMED_ROUNDS}
rounds of {TIMED_STEPS} steps, wall-clock, data and noise included). The learning rate is the best of a pilot run of
another seed. Trained at {trained_at(arguments.folder)}."""


def parse() -> argparse.Namespace:
    parser = cli.Parser(prog="python -m hybrid.bench.time_to_quality", description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE", help="what all runs have in common")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over those of the file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="S", help="default: 0 1 2")
    parser.add_argument(
        "--folder", default="runs/time_to_quality", help="where the runs go (default: runs/time_to_quality)"
    )
    parser.add_argument("--rows", type=int, default=128, metavar="R", help="validation rows (default: 128; 0: all)")
    parser.add_argument("--output", metavar="FILE", help="write Markdown there, and a plot beside it")
    arguments = parser.parse_intermixed_args()
    at_least("--rows", arguments.rows, 0)
    return arguments


if __name__ == "__main__":
    sys.exit(cli.run(main))
