"""Files that are either whole or absent: atomic text, JSON and folders, and strict JSON."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hybrid.options import shown
from hybrid.storage.leftovers import locked_folder, open_locked, remove_leftovers, temporary_of

MANIFEST = "manifest.json"
_HEAD = 2**20  # bytes of a text in which a mark is looked for
_REPLACED = ".replaced"  # the folder that `new_folder` moved aside; it survives only a kill between two renames


def to_json(value: Any, *, strict: bool = False, indent: int | None = None) -> str:
    """JSON text of `value`; numbers of numpy and torch become plain ones, paths and other objects their `str`.

    JSON has no NaN and no infinity. They become null, or, if `strict` (for what must come back as it was), an error.

    Raises:
        ValueError: `strict`, and a number is not finite or an object is none of JSON; the message names where it is.
    """
    return json.dumps(_plain(value, strict, ""), indent=indent, allow_nan=False, ensure_ascii=False)


def _plain(value: Any, strict: bool, where: str) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, strict, f"{where}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, strict, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        if strict:
            raise ValueError(f"{where or 'value'}: {value!r} is not finite and JSON cannot hold it; leave it out")
        return None
    if hasattr(value, "tolist"):  # arrays, tensors, and their scalars
        return _plain(value.tolist(), strict, where)
    if strict and not isinstance(value, Path):
        raise ValueError(f"{where or 'value'}: a {type(value).__name__} would not come back from JSON as it was")
    return str(value)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: the file is missing or is not JSON, or is nested deeper than Python can follow.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: is missing") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except RecursionError:
        raise ValueError(f"{path}: is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path}: is not valid JSON: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: as `read_json`, or it holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds {shown(content)} instead of a JSON object")
    return content


def write_text_atomic(path: Path, text: str) -> None:
    """`write_bytes_atomic` of `text` in UTF-8."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a reader, also after a kill or a power cut, sees the old content or the new one.

    Raises:
        OSError: it could not be written (disk full, say); one line, and the old content is still there.
    """
    path = Path(path)
    temporary = temporary_of(path)
    remove_leftovers(path.parent, path.name)
    try:
        with open(open_locked(temporary), "wb") as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:  # while it is still locked: after that it may be another's
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
        _sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from None


def write_json_atomic(path: Path, value: Any, *, strict: bool = False) -> None:
    """`write_text_atomic` of `to_json(value)`, indented.

    Raises:
        ValueError, OSError: as those two.
    """
    write_text_atomic(path, to_json(value, strict=strict, indent=2) + "\n")


def refuse_foreign(
    path: Path, is_ours: Callable[[Path], bool], foreign: str, option: str = "--output", what: str = "file"
) -> None:
    """The rule for all outputs: one may replace an earlier result of its own kind and nothing else, be it a file, a
    folder, a device, or a link to one of these. To be called before the work begins, and again before it is written.

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
    """Whether a text file has `mark` near its beginning, by which a command knows what it wrote itself."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return mark.encode() in file.read(_HEAD)


def has_keys(path: Path, keys: Collection[str]) -> bool:
    """Whether a file holds a JSON object with these keys, by which a command knows what it wrote itself."""
    try:
        content = read_json(path) if path.is_file() else None
    except ValueError:
        return False
    return isinstance(content, dict) and set(keys) <= content.keys()


@contextlib.contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Fill a folder that appears at `path` only when it is complete.

        with new_folder(path) as folder:
            save_file(tensors, folder / "model.safetensors")

    The block writes into a hidden sibling. On leaving it, sizes and hashes of all files go into `manifest.json`,
    everything is synced to the disk and the folder is renamed into place. A folder that is already there is replaced
    if it is empty or holds what its manifest lists and nothing else (so: was written by this function), and whatever it
    holds if `overwrite`. If anything fails, what was there before is there still.

    Raises:
        ValueError: `path` exists and may not be replaced.
        OSError: it could not be written (disk full, say); one line.
    """
    path = Path(path)
    if path.exists() and not overwrite and not _is_replaceable(path):
        raise ValueError(f"{path}: exists and was not written by hybrid; remove it or choose another folder")
    temporary = temporary_of(path)
    remove_leftovers(path.parent, path.name)
    try:
        with locked_folder(temporary):
            yield temporary
            _seal(temporary)
            _move_into_place(temporary, path)
    except (OSError, SafetensorError) as error:
        raise write_error(path, error) from None


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


def _seal(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files
    }
    manifest = {"format": 1, "saved_ns": time.time_ns(), "files": entries}
    (folder / MANIFEST).write_text(to_json(manifest, indent=2) + "\n", encoding="utf-8")
    for path in [*files, folder / MANIFEST]:
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
    for path in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        _sync_folder(path)


def _move_into_place(temporary: Path, path: Path) -> None:
    """Rename; as a folder cannot replace a full one, that one steps aside first, under a name that is still found."""
    replaced = path.with_name(path.name + _REPLACED)
    if path.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(path, replaced)
    try:
        os.rename(temporary, path)
        _sync_folder(path.parent)
    except OSError:
        if replaced.exists() and not path.exists():
            os.rename(replaced, path)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """Of the content of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder, and needs no sync of it
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_error(path: Path, error: Exception) -> OSError:
    """What to raise for an error met while `path` was written: one line without a stack of causes.

    safetensors reports the system's error only as text.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found.group(1))
    reason = os.strerror(number) if number else " ".join(str(error).split())
    if number == errno.ENOENT and not path.parent.is_dir():
        reason = f"{path.parent} is gone"
    hint = "; free some space and resume" if number in (errno.ENOSPC, errno.EDQUOT) else ""
    clear = OSError(f"{path}: could not be written: {reason}; what was saved before is unchanged{hint}")
    clear.errno = number
    return clear
