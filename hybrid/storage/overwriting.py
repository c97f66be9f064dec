"""Refuse to write over what is not an earlier result of the same kind."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

from hybrid.storage.json_files import read_json

_HEAD = 2**20  # bytes of a text in which a mark is looked for


def refuse_overwriting(
    path: Path, is_ours: Callable[[Path], bool], foreign: str, option: str = "--output", what: str = "file"
) -> None:
    """Refuse an output that would replace anything but an earlier result of its own kind.

    Anything else may be a file, a folder, a device, or a link to one of these. To be called before the work begins, and
    again before it is written.

    Args:
        is_ours: whether what exists there is such a result: `has_mark` of a text, `has_keys` of JSON.
        foreign: what is to be said of anything else, behind `exists and`.

    Raises:
        ValueError: something else is there, or its folder is none or cannot be written.
    """
    path = Path(path)
    if os.path.lexists(path) and not (path.exists() and is_ours(path)):
        raise ValueError(f"{option}: {path} exists and {foreign}; choose another {what}")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        why = "can't be written" if folder.is_dir() else "is not a folder"
        raise ValueError(f"{option}: {folder} {why}; choose another place")


def has_mark(path: Path, mark: str) -> bool:
    """Return whether a text file has `mark` near its beginning, by which a command knows what it wrote itself."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return mark.encode() in file.read(_HEAD)


def has_keys(path: Path, keys: Collection[str]) -> bool:
    """Return whether a file holds a JSON object with these keys, by which a command knows what it wrote itself."""
    try:
        content = read_json(path) if path.is_file() else None
    except ValueError:
        return False
    return isinstance(content, dict) and set(keys) <= content.keys()
