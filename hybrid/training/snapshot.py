"""Save and restore a moment of training: weights, optimizer, averages, and counts of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from hybrid.checkpoints import finding, saving
from hybrid.checkpoints.module_state import copy_into, is_finite, load_state, module_tensors
from hybrid.checkpoints.tensor_files import load_group
from hybrid.distributed import Ranks, local
from hybrid.options import shown
from hybrid.training.step import Stepper


class Counts(NamedTuple):
    """Steps done, of them skipped because they were not finite, and how many in a row were so at the end."""

    step: int
    skipped: int
    bad: int


def write(stepper: Stepper, folder: Path, counts: Counts) -> Path:
    """Save this moment (atomically) into a folder of checkpoints.

    Raises:
        ValueError: something is not finite: a broken state is no successor of a good one.
        OSError: it could not be written; what was saved before is unchanged.
    """
    s = stepper
    optimizer_tensors, optimizer_meta = s.optimizer.state()
    tensors = {"model": module_tensors(s.model), "optimizer": optimizer_tensors}
    if s.ema is not None:
        tensors["ema"] = s.ema.shadow
    broken = _broken(tensors)
    if s.ranks.any(bool(broken)):
        names = ", ".join(broken[:3]) or "what another rank holds"
        raise ValueError(
            f"trainer: {names} not finite at step {counts.step}, which was not saved; lower optim.lr "
            "(or muon_lr) and go on from the last good checkpoint with trainer.resume=auto"
        )
    state = {**counts._asdict(), "optimizer": optimizer_meta}
    return saving.save_checkpoint(folder, counts.step, tensors, state, s.ranks)


def _broken(tensors: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    return [
        f"{group} {name}"
        for group, named in tensors.items()
        for name, tensor in named.items()
        if not is_finite(local(tensor))
    ]


def is_best(folder: Path, value: float | None) -> bool:
    """Return whether a bound is below those of all checkpoints in a folder; None and what is not finite are not."""
    if value is None or not math.isfinite(value):
        return False
    best = finding.read_best(folder)
    return best is None or value < best[1]


def tidy(folder: Path, path: Path, value: float | None, keep_last: int, ranks: Ranks) -> None:
    """Mark the checkpoint at `path`, whose bound is `value`, if it is the best, and forget old ones."""
    is_the_best = is_best(folder, value)
    ranks.wait()  # all of them have read which was the best
    if ranks.is_main:
        if value is not None and is_the_best:
            saving.mark_best(folder, path, value)
        saving.prune(folder, keep_last)
    ranks.wait()


def restore(stepper: Stepper, path: Path) -> Counts:
    """Bring everything into the state that a checkpoint holds.

    Raises:
        ValueError: what is saved there does not fit; one line that names the checkpoint, and another if there is one.
    """
    with finding.reading(path):
        return _restore(stepper, path)


def _restore(s: Stepper, path: Path) -> Counts:
    state = finding.read_state(path)
    counts = Counts(*(_count(state, name, path) for name in Counts._fields))
    if counts.step != finding.step_of(path):
        raise ValueError(f"{path}: its state.json is of step {shown(counts.step)}; restore the folder from a copy")
    load_state(s.model, load_group(path, "model"))
    s.optimizer.restore(load_group(path, "optimizer"), state.get("optimizer"))
    if s.ema is not None:
        copy_into(load_group(path, "ema"), s.ema.shadow, "ema: ")
    return counts


def _count(state: Mapping[str, Any], name: str, path: Path) -> int:
    value = state.get(name)
    if type(value) is not int or value < 0:
        raise ValueError(f"{path}: its state.json has {name}: {shown(value)} instead of a number of steps")
    return value
