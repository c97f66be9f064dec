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
    from hybrid.data import PackedTokens
    from hybrid.lm import LanguageModel
    from hybrid.stepper import Stepper

TIMED_STEPS = 4
"""In one timing."""
DRAWS = 8
"""Of noise, when a run is evaluated."""


def settings(folder: str, name: str, seed: int) -> list[str]:
    """Of a run of its own, which can be interrupted and is looked at when it is over."""
    own = [f"run.name={name}-s{seed}", f"run.folder={folder}", f"run.seed={seed}", "trainer.resume=auto"]
    return [*own, "eval.sample_tokens=0", "trainer.eval_every=0", "trainer.sample_every=0"]


class Trained(NamedTuple):
    """A finished run, and the ELBO that it reached in nats per token."""

    lm: LanguageModel
    split: PackedTokens
    steps: int
    nelbo: float


def trained(config: Config, steps: int, rows: int) -> Trained:
    """Train to `steps`, if that is not done yet, and evaluate `rows` validation rows (0: all)."""
    from hybrid.experiments.subject import validation_of
    from hybrid.lm import load

    folder = Path(config.run.folder) / config.run.name
    steps = train(config, folder, steps)
    lm = load(folder, device=config.run.device)
    split = validation_of(lm)
    return Trained(lm, split, steps, elbo(lm, split, lm.block_sizes[0], rows, DRAWS))


def elbo(lm: LanguageModel, split: PackedTokens, block_size: int, rows: int, draws: int) -> float:
    """In nats per token and in float32; at block size 1 it is exact."""
    from hybrid.device import precision_context
    from hybrid.validation import bound

    precision = precision_context("fp32", lm.device)
    return bound(lm.model, split, block_size, rows=rows, draws=draws, precision=precision).nelbo


def train(config: Config, folder: Path, steps: int) -> int:
    """Train to `steps`, or find that done; the number of steps of the run."""
    from hybrid import checkpoint
    from hybrid.config import load_config
    from hybrid.run import Run

    if (folder / "config.yaml").is_file() and (done := checkpoint.steps_done(folder)):
        steps = load_config(folder / "config.yaml", checked=False).trainer.steps  # the cost of a step has noise
        if done == steps:
            return steps
    config.trainer.steps = steps
    run = Run(config)
    run.open()
    run.train()
    if checkpoint.steps_done(folder) < steps:
        raise KeyboardInterrupt
    return steps


def step_seconds(
    steppers: Mapping[str, Stepper], rounds: int, device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of a training step of each, timed in turns, some steps at a time."""
    from hybrid.timing import interleave

    timings = interleave({name: _some_steps(stepper) for name, stepper in steppers.items()}, rounds, device, clock)
    return {name: timing.median / TIMED_STEPS for name, timing in timings.items()}


def _some_steps(stepper: Stepper) -> Callable[[], None]:
    """Other rows and other noise at each call, since a step's time depends on the shapes that are drawn."""
    step = itertools.count()

    def run() -> None:
        for _ in range(TIMED_STEPS):
            stepper(next(step))

    return run


def trained_at(folder: str) -> str:
    """The commits of the runs in a folder, which may be older than that of the table."""
    from hybrid.atomic import read_json
    from hybrid.experiments.record import commit_of, listed

    found = [read_json(path) for path in sorted(Path(folder).glob("*/environment.json"))]
    return listed("commit", sorted(set(map(commit_of, found))))
