"""Pointers of git-lfs: the text that a clone has in place of a large file until that is fetched."""

from __future__ import annotations

from pathlib import Path

_BEGINNING = b"version https://git-lfs"


def advice(file: Path) -> str:
    """Say how the file is had that should be where one lies that cannot be read."""
    try:
        with open(file, "rb") as opened:
            is_pointer = opened.read(len(_BEGINNING)) == _BEGINNING
    except OSError:
        is_pointer = False
    if is_pointer:
        return "it is a pointer of git-lfs: git lfs pull, in its folder, fetches the file"
    return "copy or download the file again"
