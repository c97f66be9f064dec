"""metrics.jsonl, the record of a run: one JSON object a line, of `step`, `time` and `tag: value` pairs.

`time` is seconds of training, going on where a resumed run had stopped. A value that is not finite is null.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybrid.storage.atomic import write_bytes_atomic, write_error
from hybrid.storage.json_files import to_json

METRICS_FILE = "metrics.jsonl"
SUPERSEDED = "metrics.jsonl.superseded"
_BEGINNING = b'{"step": '


class MetricsFile:
    """The file that a run appends to.

    A record is in it when `append` returns; a kill can tear the last one only.
    """

    def __init__(self, folder: Path):
        self.path = folder / METRICS_FILE
        self.raw = open(self.path, "ab", buffering=0)  # noqa: SIM115

    def append(self, record: Mapping[str, Any]) -> None:
        """Write the whole line, or nothing.

        Raises:
            OSError: it could not be written (disk full, say); the file is as it was.
        """
        line = (to_json(record) + "\n").encode()
        before, written = os.fstat(self.raw.fileno()).st_size, 0
        try:
            while written < len(line):  # a write that finds the disk full on its way writes a part, and no error
                count = self.raw.write(line[written:])
                if not count:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                written += count
        except OSError as error:
            with contextlib.suppress(OSError):
                self.raw.truncate(before)
            raise write_error(self.path, error) from None

    def close(self) -> None:
        self.raw.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the records of a run in the order they were written; what a kill or a full disk tore is skipped.

    Raises:
        ValueError: there is no metrics.jsonl, or a line in its middle is no record.
    """
    path = Path(folder) / METRICS_FILE
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    records = []
    for number, line in enumerate(lines, start=1):
        _, record = _parse(line)
        if record is not None:
            records.append(record)
        elif number < len(lines) or line.endswith(b"\n"):
            raise ValueError(
                f"{path}: line {number} is not a record (a JSON object with a step and a time); remove the line, or "
                f"go on with trainer.resume=auto, which moves it to {SUPERSEDED}"
            )
    return records


def last_validation(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Find the last record of `read_metrics` in which the run was evaluated."""
    return next((record for record in reversed(records) if "val/nelbo" in record), None)


def _parse(line: bytes) -> tuple[bytes, dict[str, Any] | None]:
    """Split a line into what is torn of it and the record in it.

    The record is the whole line, or what follows a record that was torn before its end (and so before its newline).
    """
    start = max(line.rfind(_BEGINNING), 0)
    for at in dict.fromkeys((0, start)):
        record = _record(line[at:])
        if record is not None:
            return line[:at], record
    return line, None


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        if not isinstance(record["step"], int) or not 0 <= record["time"] < math.inf:
            return None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return record if all(value is None or isinstance(value, (int, float, str)) for value in record.values()) else None


def supersede(folder: Path, resume_step: int | None) -> list[dict[str, Any]]:
    """Move the records of later steps, and what is torn, out of metrics.jsonl; return the records that are left.

    Args:
        resume_step: the last step whose records are kept; None keeps all.
    """
    path = folder / METRICS_FILE
    if not path.exists():
        return []
    records: list[dict[str, Any]] = []
    kept: list[bytes] = []
    dropped: list[bytes] = []
    content = path.read_bytes()
    for line in content.splitlines():
        torn, record = _parse(line)
        if record is not None and (resume_step is None or record["step"] <= resume_step):
            records.append(record)
            kept.append(line[len(torn) :] + b"\n")
        elif record is not None:
            torn = line
        if torn:
            dropped.append(torn + b"\n")
    if dropped:  # first kept elsewhere, then removed here: a kill in between repeats lines and loses none
        with open(folder / SUPERSEDED, "ab") as file:
            file.writelines(dropped)
            file.flush()
            os.fsync(file.fileno())
    if b"".join(kept) != content:
        write_bytes_atomic(path, b"".join(kept))
    return records
