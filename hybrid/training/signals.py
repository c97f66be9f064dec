"""Signals that end a run: the step that is being made is finished, and what was done is saved."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Any

from hybrid.distributed import ALONE, Ranks

STDERR = 2
"""Written to as a file of the system: a signal may come while Python writes to `sys.stderr`, which it refuses twice."""


class Stopped(Exception):
    """What was being done is given up, because the run is to stop."""


class StopSignal:
    """SIGINT or SIGTERM inside of the block sets `name` and says so; a second one raises KeyboardInterrupt.

    `cuts_short` says whether what heeds it may be given up: what a resumed run makes up for.
    """

    name: str | None = None
    cuts_short = False

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks

    def __enter__(self) -> StopSignal:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def is_seen(self, or_else: bool = False) -> bool:
        """Return whether any rank was told to stop, or has another reason to: all must do the same."""
        return self._ranks.any(or_else or self.name is not None)

    def heed(self) -> None:
        """Raise `Stopped` if any rank was told to stop, and what is being done may be given up."""
        if self.cuts_short and self.is_seen():
            raise Stopped

    def _note(self, number: int, frame: Any) -> None:
        if self.name is not None:  # a second one means it
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        if self._ranks.is_main:
            begin = "\n" if os.isatty(STDERR) else ""  # behind a bar, or ^C
            told = f"{begin}{self.name}: saving what is trained, then stopping (once more: stop at once, unsaved)\n"
            with suppress(OSError):  # nobody reads it any more
                os.write(STDERR, told.encode())
