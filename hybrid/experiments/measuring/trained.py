"""The runs that an experiment trains: named after what they are, trained once, evaluated with the same noise."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

    from hybrid.config import Config
    from hybrid.data.batches import PackedTokens
    from hybrid.lm import LanguageModel
    from hybrid.training.step import Stepper

TIMED_STEPS = 4
"""In one timing."""
DRAWS = 8
"""Of noise, when a run is evaluated."""


def settings(folder: str, name: str, seed: int) -> list[str]:
    """Overrides for a run of its own, which can be interrupted and is evaluated when it is over."""
    own = [f"run.name={name}-s{seed}", f"run.folder={folder}", f"run.seed={seed}", "trainer.resume=auto"]
    return [*own, "eval.sample_tokens=0", "trainer.eval_every=0", "trainer.sample_every=0"]


class Trained(NamedTuple):
    """A finished run, and the ELBO that it reached in nats per token."""

    lm: LanguageModel
    split: PackedTokens
    steps: int
    nelbo: float


def trained(config: Config, steps: int, rows: int) -> Trained:
    """Train to `steps`, if that is not done yet, and evaluate `rows` validation rows (0: all).

    Raises:
        ValueError: the run's folder holds a run of other settings, or of another text.
    """
    from hybrid.experiments.measuring.subject import validation_of
    from hybrid.lm import load
    from hybrid.runs.run_folder import folder_of

    folder = folder_of(config.run)
    steps = train(config, folder, steps)
    lm = load(folder, device=config.run.device)
    split = validation_of(lm)
    return Trained(lm, split, steps, elbo(lm, split, lm.block_sizes[0], rows, DRAWS))


def elbo(lm: LanguageModel, split: PackedTokens, block_size: int, rows: int, draws: int) -> float:
    """Bound the likelihood of `rows` rows in nats per token and in float32; at block size 1 it is exact."""
    from hybrid.device import precision_context
    from hybrid.likelihoods.rows import bound

    precision = precision_context("fp32", lm.device)
    return bound(lm.model, split, block_size, rows=rows, draws=draws, precision=precision).nats_per_token


def train(config: Config, folder: Path, steps: int) -> int:
    """Train to `steps`, or find that done under the same settings; return the number of steps of the run."""
    from hybrid.runs.run import Run
    from hybrid.sweep.plan import Planned
    from hybrid.sweep.state import state_of

    config.trainer.steps = steps
    planned = Planned(folder.name, config, [])
    if not state_of(planned, "this experiment", strict=True).is_finished:
        run = Run.of(config)
        run.open()
        run.train()
        if not state_of(planned, "this experiment", strict=True).is_finished:
            raise KeyboardInterrupt
    return steps


def left_to_right(lm: LanguageModel, split: PackedTokens, config: Config, rows: int) -> float:
    """Return nats per token of the exact likelihood from left to right, as `elbo`: `causal` where `objective.ar_weight`
    trains it, else `exact`."""
    from hybrid.device import precision_context
    from hybrid.likelihoods.exact import Causal
    from hybrid.likelihoods.rows import by_row

    if not config.objective.ar_weight:
        return elbo(lm, split, 1, rows, draws=1)
    precision = precision_context("fp32", lm.device)
    found = by_row(lm.model, split, 1, Causal(), rows=rows, precision=precision)
    return float(found.nll.sum()) / int(found.tokens.sum())


def step_seconds(
    steppers: Mapping[str, Stepper], rounds: int, device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Time the training steps of each in turns, some steps at a time; return the median seconds of one."""
    from hybrid.results.timing import interleave

    timings = interleave({name: _some_steps(stepper) for name, stepper in steppers.items()}, rounds, device, clock)
    return {name: timing.median / TIMED_STEPS for name, timing in timings.items()}


def _some_steps(stepper: Stepper) -> Callable[[], None]:
    """Make some steps, other rows and noise at each call: their time depends on the shapes that are drawn."""
    step = itertools.count()

    def run() -> None:
        for _ in range(TIMED_STEPS):
            stepper(next(step))

    return run


def trained_at(folder: str) -> str:
    """Name the commits of the runs in a folder, which may be older than that of the table."""
    from hybrid.results.environment import commit_of
    from hybrid.results.publish import listed
    from hybrid.storage.json_files import read_json

    found = set()
    for path in sorted(Path(folder).glob("*/environment.json")):
        try:
            found.add(commit_of(read_json(path)))
        except (ValueError, TypeError, KeyError):
            found.add("a commit that is not recorded")
    return listed("commit", sorted(found))
