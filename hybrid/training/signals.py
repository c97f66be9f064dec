"""Signals that end a run: the step that is being made is finished, and what was done is saved."""

from __future__ import annotations

import signal
from typing import Any


class StopSignal:
    """SIGINT or SIGTERM inside of the block sets `name`; a second one raises KeyboardInterrupt."""

    name: str | None = None

    def __enter__(self) -> StopSignal:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.name is not None:  # a second one means it
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
