"""Find checkpoints: the one that a path means, the latest and the best; what else there is where one is damaged."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hybrid.checkpoints.module_state import DamagedState
from hybrid.options import bare, nearest_path, path_of, shown
from hybrid.storage.folders import MANIFEST, verify_folder
from hybrid.storage.json_files import read_json, read_object

RUNS = "runs"
"""Where runs are, unless run.folder says otherwise."""
MODELS = "models"
"""Where models of others are, by the commands of the pages."""
MOST_SHOWN = 5
"""Runs of a folder that an error names."""
_SIGNS = ("checkpoints", MANIFEST, "model.safetensors", "config.json")
"""What a run, a checkpoint, a saved model or one of others has in its folder, one of them."""
_log = logging.getLogger(__name__)
_STEP = re.compile(r"step-(\d+)(?:\.replaced)?")


def find_checkpoint(path: str | Path) -> Path:
    """Find the verified checkpoint that a path means: a run folder, its `checkpoints`, a step folder, a saved model, or
    the file `checkpoints/best` of a run.

    In the first two cases it is the one that `latest` names; if that is damaged, the newest checkpoint that is not
    takes its place and a warning says so. Nothing replaces the best. Changes nothing on the disk.

    Raises:
        ValueError: there is nothing at `path`, or nothing undamaged; one line.
    """
    path = path_of("checkpoint", path)
    if path.name == "best" and path.is_file():
        best = read_best(path.parent)
        if best is None:
            raise ValueError(f"checkpoint: {path} names no checkpoint; use the latest")
        verify_folder(best[0])
        return best[0]
    if not os.path.isdir(path):  # of any text, also one that is too long for a name
        what = "is a file" if os.path.lexists(path) else "does not exist"
        name = str(path) if len(str(path)) < 300 else shown(str(path))
        given = f"checkpoint: {name} {what}{_meant(path)}"
        raise ValueError(f"{given}; give the folder of a run, a checkpoint, a saved model or a Hugging Face model")
    if (path / MANIFEST).is_file() or _STEP.fullmatch(path.name):
        verify_folder(path)
        return path
    if (path / "model.safetensors").is_file():  # a saved model that lost its manifest (copied by hand, say)
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    checkpoints = list_checkpoints(folder)
    if not checkpoints and (inner := _models_in(path)):
        more = f", and {len(inner) - MOST_SHOWN} more" if len(inner) > MOST_SHOWN else ""
        names = ", ".join(bare(model.name) for model in inner[:MOST_SHOWN])
        what = "run" if all((model / "checkpoints").is_dir() for model in inner) else "model"
        raise ValueError(f"checkpoint: {path} is no {what}, but holds some ({names}{more}); name one, e.g. {inner[0]}")
    if not checkpoints:
        raise ValueError(f"checkpoint: {path} holds no checkpoint; was the run stopped before its first save?")
    return _latest_undamaged(folder, checkpoints)


def _meant(path: Path) -> str:
    """Say what there is instead of a path: one of this name where runs and models are, or one called almost like it."""
    if os.path.lexists(path):
        return ""
    found = next((home for home in map(Path, (RUNS, MODELS)) if os.path.isdir(home / path)), None)
    return nearest_path(path) if found is None else f" (did you mean {str(found / path)!r}?)"


def _models_in(folder: Path) -> list[Path]:
    """Return the folders in a folder in which a model may lie, by their names; hidden ones are not finished."""
    inner = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in inner if any((path / sign).exists() for sign in _SIGNS))


def _latest_undamaged(folder: Path, checkpoints: list[Path]) -> Path:
    problems: list[str] = []
    order = checkpoints[::-1]
    pointer = folder / "latest"
    named = read_pointer(pointer)
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


def list_checkpoints(folder: Path) -> list[Path]:
    """List the step folders in a folder of checkpoints, in the order in which they were saved; damaged ones too.

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
    """Return the step in the name of a step folder.

    Raises:
        ValueError: it is not a step folder.
    """
    match = _STEP.fullmatch(Path(checkpoint).name)
    if match is None:
        raise ValueError(f"{checkpoint}: is not a checkpoint folder (step-N)")
    return int(match.group(1))


def steps_done(run: Path) -> int:
    """Count the steps of the latest undamaged checkpoint of a run; 0 if it has saved none yet."""
    return step_of(find_checkpoint(run)) if list_checkpoints(run / "checkpoints") else 0


def read_best(folder: Path) -> tuple[Path, float] | None:
    """Return the best checkpoint and its value; None if there is none."""
    try:
        name, value = (Path(folder) / "best").read_text(encoding="utf-8").split()
        checkpoint = Path(folder) / name
        return (checkpoint, float(value)) if _STEP.fullmatch(name) and checkpoint.is_dir() else None
    except (OSError, ValueError):
        return None


def is_latest(folder: Path, checkpoint: Path) -> bool:
    """Return whether `checkpoint` is the one in `folder` that `latest` names."""
    named = read_pointer(Path(folder) / "latest")
    return named is not None and named.absolute() == checkpoint.absolute()


def read_pointer(pointer: Path) -> Path | None:
    """Return the step folder that a file names; None if it names none."""
    try:
        name = pointer.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return pointer.with_name(name) if _STEP.fullmatch(name) else None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return the `state` given to `save_checkpoint`.

    Raises:
        ValueError: it is missing or no JSON object.
    """
    return read_object(Path(checkpoint) / "state.json")


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Let errors inside begin with the folder of the checkpoint; of a damaged one they tell what else there is.

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
    """Say what to do about a damaged checkpoint: take the one beside it that was saved last before it, else later."""
    if not _STEP.fullmatch(damaged.name):
        return "restore it from a copy, or save it again"
    saved = list_checkpoints(damaged.parent)
    at = saved.index(damaged) if damaged in saved else len(saved)
    for other in (*saved[:at][::-1], *saved[at + 1 :]):
        with suppress(ValueError):
            verify_folder(other)
            return f"take {other}, or restore it from a copy"
    return "restore it from a copy: there is no other beside it"
