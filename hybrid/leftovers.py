"""The cache folder, and what killed processes left of their work in it, told from the work of those that live.

A name carries who builds: where its process number counts (one start of one machine, one space of numbers in it, so
that containers and machines that share a disk are told apart), the number, and when the process began (numbers come
back). Only who is sure to be gone is cleaned up after: no such process there any more, or nothing touched for a week.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from hashlib import sha256
from pathlib import Path

from hybrid.options import shown

PREFIX = ".building-"
ABANDONED = 7 * 24 * 3600  # seconds without a change, of processes that can't be looked up from here
UNKNOWN = "0" * 12
_OWNER = re.compile(rf"{re.escape(PREFIX)}[^-]+-([0-9a-f]{{12}})-(\d+)-(\d+)-")


def cache_folder(named: str = "") -> Path:
    """`named`, else $HYBRID_CACHE, else the usual place. Raises ValueError if that is in a home that there isn't."""
    chosen = named or os.environ.get("HYBRID_CACHE") or "~/.cache/hybrid"
    folder = os.path.expanduser(chosen)
    if folder.startswith("~"):
        raise ValueError(
            f"data.cache_dir: {shown(chosen)}: there is no such home folder; set data.cache_dir or $HYBRID_CACHE to a "
            "folder that can be written"
        )
    return Path(folder)


def building(folder: Path) -> Path:
    """A new name beside `folder`, under which this process may build it."""
    pid = os.getpid()
    owner = f"{_number_space()}-{pid}-{_began(pid) or 0}"
    return folder.with_name(f"{PREFIX}{folder.name}-{owner}-{secrets.token_hex(4)}")


def remove_leftovers(parent: Path) -> None:
    """Remove the folders in `parent` whose builders are surely gone; what can't be removed stays, without an error."""
    try:
        found = [path for path in parent.iterdir() if path.name.startswith(PREFIX)]
    except OSError:
        return  # not there yet, or not ours to read
    for path in found:
        if _is_abandoned(path):
            shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(path: Path) -> bool:
    owner = _OWNER.match(path.name)
    if owner is not None and owner[1] == _number_space() != UNKNOWN:
        return _is_gone(int(owner[2]), int(owner[3]))
    return time.time() - _last_change(path) > ABANDONED


def _is_gone(pid: int, began: int) -> bool:
    try:
        os.kill(pid, 0)  # sends nothing
    except ProcessLookupError:
        return True
    except OSError:
        pass  # another user's
    return _began(pid) not in (began, None)


def _number_space() -> str:
    """12 hex digits for the processes that see each other's numbers; zeros where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return sha256(f"{boot}{os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:12]
    except OSError:
        return UNKNOWN


def _began(pid: int) -> int | None:
    """When a process began, in ticks since the machine was started; 0 if it has ended, None if nothing says it."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = status.rpartition(")")[2].split()  # the name before it may hold blanks and parentheses
    return 0 if state in "ZX" else int(fields[18])  # a zombie builds nothing


def _last_change(folder: Path) -> float:
    times = [time.time() if not folder.exists() else 0.0]
    for parent, _, names in os.walk(folder):
        for path in (parent, *(os.path.join(parent, name) for name in names)):
            try:
                times.append(os.lstat(path).st_mtime)
            except OSError:
                times.append(time.time())  # it changes right now
    return max(times)
