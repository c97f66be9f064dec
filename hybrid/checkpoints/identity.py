"""Say which model lies in a folder, by the hashes of its files, so that results made from it can be told from others.

eval.json           of an evaluation: `checkpoint` (step and hash of what was evaluated), and the judge's own
environment.json    of a run: `init_from` (step and hash of the checkpoint whose weights it started from)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hybrid.checkpoints.finding import list_checkpoints, step_of
from hybrid.storage.folders import MANIFEST
from hybrid.storage.hashing import digest, sha256_of
from hybrid.storage.json_files import read_json


def identity_of(folder: Path) -> dict[str, Any] | None:
    """Return step (None: a saved model) and hash of the content of a checkpoint; None if its manifest cannot tell.

    The files themselves are not read: whoever loads a checkpoint verifies them.
    """
    try:
        files = {str(name): str(entry["sha256"]) for name, entry in read_json(folder / MANIFEST)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    try:
        step = step_of(folder)
    except ValueError:
        step = None
    return {"step": step, "sha256": digest(*(part for item in sorted(files.items()) for part in item))}


def identity_at(path: Path) -> dict[str, Any] | None:
    """Return the identity of the model that is at a path now: of what `hybrid.load` takes of a run, of a saved model,
    or of a folder in another format; None if there is nothing that tells."""
    if is_foreign(path):
        return foreign_identity(path)
    folder = path / "checkpoints"
    saved = list_checkpoints(folder if folder.is_dir() else path)
    return identity_of(saved[-1] if saved else path)


def is_foreign(path: Path) -> bool:
    """Return whether a folder is a Hugging Face model's, and none of ours."""
    return os.path.isfile(path / "config.json") and not os.path.isfile(path / "config.yaml")  # of any text as a path


def foreign_identity(path: Path) -> dict[str, Any]:
    """Return the identity of a folder in another format: the hash of its settings, tokenizer and weights."""
    named = (file for file in sorted(path.glob("*")) if file.suffix in (".json", ".safetensors"))
    stats = {file: file.stat() for file in named if file.is_file() and file.name != "eval.json"}  # which is about it
    return {"step": None, "sha256": _hash_of(tuple((p, s.st_size, s.st_mtime_ns) for p, s in stats.items()))}


@cache  # gigabytes, perhaps, and the same for many runs
def _hash_of(files: tuple[tuple[Path, int, int], ...]) -> str:
    return digest(*(part for path, _, _ in files for part in (path.name, sha256_of(path))))


def recorded_model(run: Path, role: str) -> Any:
    """Return which checkpoint a run was made with, as it says itself; None if it does not.

    Args:
        role: `init_from`, the weights it started from, or `teacher`.
    """
    try:
        return read_json(run / "environment.json").get(role)
    except (ValueError, AttributeError):
        return None


def is_same_checkpoint(one: Any, other: Any) -> bool | None:
    """Return whether two identities are of the same weights; None if one is not known."""
    hashes = [each.get("sha256") if isinstance(each, Mapping) else None for each in (one, other)]
    return None if None in hashes else hashes[0] == hashes[1]
