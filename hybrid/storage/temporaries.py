"""Temporary files and folders, and which of them a process that was killed has left behind.

A writer holds a lock on what it writes, `.NAME.PID.tmp`, and the system lets go of a lock when a process ends, however
it ends. So a temporary whose lock is free belongs to nobody. That also holds where process numbers mean little: they
are used again, every container has its own, and other machines that share the folder have theirs.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform == "win32":  # no such locks: what is left there stays
    fcntl = None
else:
    import fcntl

_TEMPORARY = re.compile(r"\.(.+)\.\d+\.tmp")


def temporary_of(path: Path) -> Path:
    """Return where this process writes what will be at `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def target_of(path: Path) -> str | None:
    """Return the name of the file or folder that a temporary was to become; None if `path` is no temporary."""
    match = _TEMPORARY.fullmatch(path.name)
    return match.group(1) if match is not None else None


def open_locked(path: Path) -> int:
    """Return the descriptor of an empty new file, locked for as long as it is open.

    Raises:
        OSError: the file cannot be made.
    """
    while True:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags, 0o666)  # as `open` does: without the mode it would be a program
        lock(descriptor, wait=True)
        if _is_at(path, descriptor):
            os.truncate(descriptor, 0)
            return descriptor
        os.close(descriptor)  # whoever had the lock before has moved the file away, or removed it


@contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    """Make a folder, with its parents, that is locked inside the block; what is left of it at the end is removed.

    Raises:
        OSError: it cannot be made.
    """
    descriptor = None
    try:
        while descriptor is None:
            _remove_unless_written(path, sole_writer=True)
            path.mkdir(parents=True)
            if fcntl is None:
                break
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            lock(descriptor, wait=True)
            if not _is_at(path, descriptor):  # taken for a leftover before it was locked
                os.close(descriptor)
                descriptor = None
        yield
    finally:
        if descriptor is None or _is_at(path, descriptor):  # else it is in its place, and the name may be another's
            shutil.rmtree(path, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def remove_leftovers(folder: Path, name: str | None = None, *, sole_writer: bool = False) -> None:
    """Remove the temporaries in `folder` that nobody writes any more: those of the target `name`, or of every target.

    Args:
        sole_writer: nobody else writes there, so that also those go whose locks cannot be asked for.
    """
    try:
        found = list(Path(folder).iterdir())
    except OSError:
        return
    for path in found:
        target = target_of(path)
        if target is not None and name in (None, target):
            _remove_unless_written(path, sole_writer)


def _remove_unless_written(path: Path, sole_writer: bool) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return
    try:
        is_free = lock(descriptor, wait=False)
        if is_free is False or (is_free is None and not sole_writer):
            return
        if not _is_at(path, descriptor):  # it has been moved into its place meanwhile, and the name is another's by now
            return
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    except OSError:
        pass  # not ours to remove
    finally:
        os.close(descriptor)


def lock(descriptor: int, wait: bool) -> bool | None:
    """Lock a file for as long as this process, or one that inherits the descriptor, has it open.

    Returns:
        Whether the lock could be had; None if the file system has none.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
