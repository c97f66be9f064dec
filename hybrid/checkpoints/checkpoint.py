"""Checkpoints: named tensors (safetensors) and JSON in a folder that is either complete or absent.

checkpoints/
  step-00000200/
    model.safetensors, ema.safetensors, ...   groups of tensors (tensorfiles.py)
    state.json                                the rest of what resuming needs
    manifest.json                             size and SHA-256 of each file
  step-00000300/
  latest                                      text: the name of a folder
  best                                        text: the name of a folder, and its value
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from hybrid.checkpoints.states import DamagedState
from hybrid.checkpoints.tensors import save_group
from hybrid.distributed import ALONE, Ranks
from hybrid.options import path_of, shown
from hybrid.storage.atomic import (
    MANIFEST,
    clean_up,
    new_folder,
    read_json,
    read_object,
    remove_folder,
    verify_folder,
    write_json_atomic,
    write_text_atomic,
)

_log = logging.getLogger(__name__)
_STEP = re.compile(r"step-(\d+)(?:\.replaced)?")


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any],
    ranks: Ranks = ALONE,
) -> Path:  # fmt: skip
    """Write `folder/step-N` (a file per group of `tensors`, and `state` as JSON), then point `latest` at it.

    Whatever happens on the way, earlier checkpoints and `latest` stay as they are. A checkpoint of the same step is
    replaced. Only one job may save into a folder, all ranks of it together: the first writes what all have, each writes
    what it holds of tensors that are spread over them. The folder must be one that all machines see.

    Raises:
        ValueError: `state` holds what JSON cannot (a number that is not finite, say).
        OSError: it could not be written (disk full, say); one line.
    """
    folder = Path(folder)
    target = folder / f"step-{step:08d}"
    with _folder_of_all(target, ranks) as temporary:
        for group, named in tensors.items():
            save_group(named, temporary, group, ranks)
        if ranks.is_main:
            write_json_atomic(temporary / "state.json", state, strict=True)
    if ranks.is_main:
        write_text_atomic(folder / "latest", f"{target.name}\n")
    ranks.wait()
    return target


@contextmanager
def _folder_of_all(target: Path, ranks: Ranks) -> Iterator[Path]:
    """`new_folder`, into which every rank writes; it is in place when the block has ended on all of them."""
    if not ranks.is_main:
        yield Path(ranks.gather(None)[0])
        ranks.wait()
        return
    clean_up(target.parent)
    with new_folder(target, overwrite=True) as temporary:
        ranks.gather(str(temporary))
        yield temporary
        ranks.wait()


def mark_best(folder: Path, checkpoint: Path, value: float) -> None:
    """Point `best` at a checkpoint of `folder`; `prune` keeps it.

    Raises:
        ValueError: `value` is not finite.
        OSError: the pointer could not be written.
    """
    if not math.isfinite(value):
        raise ValueError(f"best: {value!r} is not finite and cannot be compared with later values")
    write_text_atomic(Path(folder) / "best", f"{checkpoint.name}\n{value!r}\n")


def read_best(folder: Path) -> tuple[Path, float] | None:
    """The best checkpoint and its value; None if there is none."""
    try:
        name, value = (Path(folder) / "best").read_text(encoding="utf-8").split()
        checkpoint = Path(folder) / name
        return (checkpoint, float(value)) if _STEP.fullmatch(name) and checkpoint.is_dir() else None
    except (OSError, ValueError):
        return None


def prune(folder: Path, keep_last: int) -> None:
    """Remove all checkpoints but the `keep_last` saved last, the one `latest` names and the best.

    Only for the process that writes there: what a killed one has left is removed as well.

    Raises:
        ValueError: `keep_last` is less than 1.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last: {keep_last} is too small; at least the latest checkpoint must be kept")
    clean_up(folder)
    checkpoints = list_checkpoints(folder)
    best = read_best(folder)
    kept = {*checkpoints[-keep_last:], _read_pointer(Path(folder) / "latest"), best and best[0]}
    for checkpoint in checkpoints:
        if checkpoint not in kept:
            remove_folder(checkpoint)


def list_checkpoints(folder: Path) -> list[Path]:
    """The step folders in a folder of checkpoints, in the order in which they were saved; damaged ones among them.

    The order is that of saving, not of the step: after going back to an earlier step, the later ones are older.
    """
    folder = Path(folder)
    paths = folder.iterdir() if folder.is_dir() else []
    return sorted((path for path in paths if _STEP.fullmatch(path.name) and path.is_dir()), key=_age)


def _age(checkpoint: Path) -> tuple[int, str]:
    try:
        return int(read_json(checkpoint / MANIFEST)["saved_ns"]), checkpoint.name
    except (ValueError, TypeError, KeyError, OverflowError):
        return -1, checkpoint.name


def step_of(checkpoint: Path) -> int:
    """The step in the name of a step folder.

    Raises:
        ValueError: it is not a step folder.
    """
    match = _STEP.fullmatch(Path(checkpoint).name)
    if match is None:
        raise ValueError(f"{checkpoint}: is not a checkpoint folder (step-N)")
    return int(match.group(1))


def steps_done(run: Path) -> int:
    """Steps of the latest undamaged checkpoint of a run; 0 if it has saved none yet."""
    return step_of(find_checkpoint(run)) if list_checkpoints(run / "checkpoints") else 0


def find_checkpoint(path: str | Path, which: Literal["latest", "best"] = "latest") -> Path:
    """The verified checkpoint that `path` means: a run folder, its `checkpoints`, a step folder or a saved model.

    In the first two cases it is the one that `which` names. If `latest` or what it names is damaged, the newest
    checkpoint that is not takes its place and a warning says so; nothing replaces `best`. Changes nothing on the disk.

    Raises:
        ValueError: there is nothing at `path`, or nothing undamaged; one line.
    """
    path = path_of("checkpoint", path)
    if not os.path.isdir(path):  # of any text, also one that is too long for a name
        what = "is a file" if os.path.lexists(path) else "does not exist"
        name = str(path) if len(str(path)) < 300 else shown(str(path))
        raise ValueError(f"checkpoint: {name} {what}; give the folder of a run, of a checkpoint or of a saved model")
    if (path / MANIFEST).is_file() or _STEP.fullmatch(path.name):
        verify_folder(path)
        return path
    if (path / "model.safetensors").is_file():  # a saved model that lost its manifest (copied by hand, say)
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        raise ValueError(f"checkpoint: {path} holds no checkpoint; was the run stopped before its first save?")
    if which == "best":
        best = read_best(folder)
        if best is None:
            raise ValueError(f"checkpoint: {folder / 'best'} names no checkpoint; use the latest")
        verify_folder(best[0])
        return best[0]
    return _latest_undamaged(folder, checkpoints)


def _latest_undamaged(folder: Path, checkpoints: list[Path]) -> Path:
    problems: list[str] = []
    order = checkpoints[::-1]
    pointer = folder / "latest"
    named = _read_pointer(pointer)
    if named is not None:
        order = [named, *(checkpoint for checkpoint in order if checkpoint != named)]
    elif pointer.exists():
        problems.append(f"{pointer}: is corrupt (it names no checkpoint)")
    for checkpoint in order:
        try:
            verify_folder(checkpoint)
        except ValueError as error:
            problems.append(str(error))
            continue
        if problems:
            _log.warning("%s; using step %d (%s) instead", "; ".join(problems), step_of(checkpoint), checkpoint)
        return checkpoint
    raise ValueError(
        f"checkpoint: none in {folder} is usable: {'; '.join(problems)}; restore one from a copy or start a new run"
    )


def _read_pointer(pointer: Path) -> Path | None:
    try:
        name = pointer.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return pointer.with_name(name) if _STEP.fullmatch(name) else None


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Errors inside begin with the folder of the checkpoint; of one that is damaged they tell what else there is.

    Raises:
        ValueError: one was raised inside.
    """
    try:
        yield
    except ValueError as error:
        named = str(error) if str(error).startswith(str(folder)) else f"{folder}: {error}"
        way_out = f"; {_way_out(folder)}" if isinstance(error, DamagedState) else ""
        raise ValueError(f"{named}{way_out}") from None


def _way_out(damaged: Path) -> str:
    """What to do about a damaged checkpoint: the checkpoint beside it that was saved last before it, else later."""
    if not _STEP.fullmatch(damaged.name):
        return "restore it from a copy, or save it again"
    saved = list_checkpoints(damaged.parent)
    at = saved.index(damaged) if damaged in saved else len(saved)
    for other in (*saved[:at][::-1], *saved[at + 1 :]):
        with suppress(ValueError):
            verify_folder(other)
            return f"take {other}, or restore it from a copy"
    return "restore it from a copy: there is no other beside it"


def is_latest(folder: Path, checkpoint: Path) -> bool:
    """Whether `checkpoint` is the one in `folder` that `latest` names."""
    named = _read_pointer(Path(folder) / "latest")
    return named is not None and named.absolute() == checkpoint.absolute()


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The `state` given to `save_checkpoint`.

    Raises:
        ValueError: it is missing or no JSON object.
    """
    return read_object(Path(checkpoint) / "state.json")
