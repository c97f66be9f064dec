"""Save checkpoints: named tensors (safetensors) and JSON in a folder that is either complete or absent.

checkpoints/
  step-00000200/
    model.safetensors, ema.safetensors, ...   groups of tensors (tensor_files.py)
    state.json                                the rest of what resuming needs
    manifest.json                             size and SHA-256 of each file
  step-00000300/
  latest                                      text: the name of a folder
  best                                        text: the name of a folder, and its value
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from hybrid.checkpoints.finding import list_checkpoints, read_best, read_pointer
from hybrid.checkpoints.tensor_files import save_group
from hybrid.distributed import ALONE, Ranks
from hybrid.storage.atomic import write_json_atomic, write_text_atomic
from hybrid.storage.folders import clean_up, new_folder, remove_folder


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any],
    ranks: Ranks = ALONE,
) -> Path:  # fmt: skip
    """Write `folder/step-N` (a file per group of `tensors`, and `state` as JSON), then point `latest` at it.

    Whatever happens on the way, earlier checkpoints and `latest` stay as they are. A checkpoint of the same step is
    replaced. Only one job may save into a folder, all ranks of it together: the first writes what all have, each writes
    what it holds of tensors that are sharded over them. The folder must be one that all machines see.

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
    """Open a `new_folder` into which every rank writes; it is in place when the block has ended on all of them."""
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
    kept = {*checkpoints[-keep_last:], read_pointer(Path(folder) / "latest"), best and best[0]}
    for checkpoint in checkpoints:
        if checkpoint not in kept:
            remove_folder(checkpoint)
