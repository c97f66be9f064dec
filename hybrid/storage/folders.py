"""Folders that are complete or absent, with a manifest of the sizes and hashes of their files."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from hybrid.storage.atomic import sync_folder, write_error
from hybrid.storage.hashing import sha256_of
from hybrid.storage.json_files import read_json, to_json
from hybrid.storage.temporaries import locked_folder, remove_leftovers, temporary_of

MANIFEST = "manifest.json"
_REPLACED = ".replaced"  # the folder that `new_folder` moved aside; it survives only a kill between two renames


@contextlib.contextmanager
def new_folder(path: Path, *, overwrite: bool = False, manifest: bool = True) -> Iterator[Path]:
    """Fill a folder that appears at `path` only when it is complete.

        with new_folder(path) as folder:
            save_file(tensors, folder / "model.safetensors")

    The block writes into a hidden sibling. On leaving it, sizes and hashes of all files go into `manifest.json`,
    everything is synced to the disk and the folder is renamed into place. A folder that is already there is replaced
    if it is empty or holds what its manifest lists and nothing else (so: was written by this function), and whatever it
    holds if `overwrite`. If anything fails, what was there before is there still.

    Args:
        manifest: without one the folder is in another's format, and takes the place of nothing but an empty folder.

    Raises:
        ValueError: `path` exists and may not be replaced.
        OSError: it could not be written (disk full, say); one line.
    """
    path = Path(path)
    if path.exists() and not overwrite and not (_is_replaceable(path) if manifest else _is_empty(path)):
        raise ValueError(f"{path}: exists and was not written by hybrid; remove it or choose another folder")
    temporary = temporary_of(path)
    remove_leftovers(path.parent, path.name)
    try:
        with locked_folder(temporary):
            yield temporary
            if manifest:
                _write_manifest(temporary)
            _sync(temporary)
            _move_into_place(temporary, path)
    except (OSError, SafetensorError) as error:
        raise write_error(path, error) from None


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _is_replaceable(path: Path) -> bool:
    if not path.is_dir():
        return False
    found = {file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir() or file.is_symlink()}
    try:
        return not found or found <= {MANIFEST, *read_json(path / MANIFEST)["files"]}
    except (ValueError, TypeError, KeyError):
        return False


def verify_folder(folder: Path) -> None:
    """Compare every file of a folder with the sizes and hashes of its manifest.

    Raises:
        ValueError: a file is missing, truncated or altered; one line that names it.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{folder}: is missing")
    manifest = read_json(Path(folder) / MANIFEST)
    try:
        files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError):
        raise ValueError(f"{Path(folder) / MANIFEST}: is not a manifest") from None
    for name, (size, digest) in files.items():
        path = Path(folder) / name
        if not path.is_file():
            raise ValueError(f"{path}: is missing")
        if path.stat().st_size != size:
            raise ValueError(f"{path}: has {path.stat().st_size} bytes instead of {size} (truncated?)")
        if sha256_of(path) != digest:
            raise ValueError(f"{path}: its content is not what was saved (SHA-256 differs)")


def remove_folder(path: Path) -> None:
    """Remove a folder so that a kill in the middle leaves no half-deleted folder under its name."""
    temporary = temporary_of(path)
    shutil.rmtree(temporary, ignore_errors=True)
    os.rename(path, temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def clean_up(folder: Path) -> None:
    """Finish or remove what a killed process left in `folder`. Only for the process that writes there."""
    folder = Path(folder)
    remove_leftovers(folder, sole_writer=True)
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if path.name.endswith(_REPLACED) and path.is_dir():
            original = path.with_name(path.name.removesuffix(_REPLACED))
            shutil.rmtree(path, ignore_errors=True) if original.exists() else os.rename(path, original)


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files
    }
    manifest = {"format": 1, "saved_ns": time.time_ns(), "files": entries}
    (folder / MANIFEST).write_text(to_json(manifest, indent=2) + "\n", encoding="utf-8")


def _sync(folder: Path) -> None:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
    for path in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        sync_folder(path)


def _move_into_place(temporary: Path, path: Path) -> None:
    """Rename. A folder cannot replace a full one: that one steps aside first, under a name that is still found."""
    replaced = path.with_name(path.name + _REPLACED)
    if path.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(path, replaced)
    try:
        os.rename(temporary, path)
        sync_folder(path.parent)
    except OSError:
        if replaced.exists() and not path.exists():
            os.rename(replaced, path)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
