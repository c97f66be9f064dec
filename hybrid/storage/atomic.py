"""Write a file so that a reader, also after a kill or a power cut, sees the old content or the new one."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path
from typing import Any

from hybrid.storage.json_files import to_json
from hybrid.storage.temporaries import open_locked, remove_leftovers, temporary_of


def write_text_atomic(path: Path, text: str) -> None:
    """Write a text in UTF-8, as `write_bytes_atomic`."""
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
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from None


def write_json_atomic(path: Path, value: Any, *, strict: bool = False) -> None:
    """Write `to_json(value)`, indented, as `write_text_atomic`.

    Raises:
        ValueError, OSError: as those two.
    """
    write_text_atomic(path, to_json(value, strict=strict, indent=2) + "\n")


def sync_folder(folder: Path) -> None:
    """Let the names in a folder reach the disk."""
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder, and needs no sync of it
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_error(path: Path, error: Exception) -> OSError:
    """Return what to raise for an error met while `path` was written: one line without a stack of causes.

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
