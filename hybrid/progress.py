"""Show on stderr how far long work has come: a bar on a terminal (tqdm), else a line now and then.

In a file tqdm would write one line without an end, of which `tail -f` and most logs show nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TextIO, TypeVar

Chunk = TypeVar("Chunk", bound=Sized)

DELAY = 1.0  # seconds before a bar appears
INTERVAL = 10.0  # seconds between two lines


def progress(chunks: Iterable[Chunk], total: int, what: str, noun: str = "documents") -> Iterator[Chunk]:
    """Pass the chunks on, which hold `total` things (called `noun`) in all; short work passes in silence."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=what, unit=f" {noun}", leave=False, delay=DELAY) as bar:
            for chunk in chunks:
                yield chunk
                bar.update(len(chunk))
        return
    done, said = 0, time.monotonic()
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        if time.monotonic() - said > INTERVAL:
            said = time.monotonic()
            print(f"{what}: {done} of {total} {noun}", file=sys.stderr, flush=True)


class TrainingProgress:
    """Shows the steps, the loss and the speed of a training loop."""

    def __init__(self, total: int, start: int = 0, interval: float = INTERVAL, stream: TextIO | None = None) -> None:
        self.total = total
        self._step = start
        self._interval = interval
        self._stream = sys.stderr if stream is None else stream
        self._bar: Any = None
        self._loss: float | None = None
        # Steps and tokens since `_since`; the bar keeps its own time.
        self._since = time.monotonic()
        self._from_step = start
        self._tokens = 0
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=start, file=self._stream, unit="step", dynamic_ncols=True)

    def update(self, step: int, tokens: int, loss: float | None = None) -> None:
        """Count what was done since the last call.

        Args:
            step: steps done.
            tokens: tokens read since the last call.
            loss: of the last step; None: not known, the one before is shown.
        """
        self._loss = self._loss if loss is None else loss
        self._tokens += tokens
        if self._bar is not None:
            self._bar.update(step - self._step)
        self._step = step
        seconds = time.monotonic() - self._since
        if seconds >= (1.0 if self._bar is not None else self._interval) or step >= self.total:
            self._report(max(seconds, 1e-9))

    def _report(self, seconds: float) -> None:
        rate = self._tokens / seconds
        loss = "" if self._loss is None else f"loss {self._loss:.4f}, "
        if self._bar is not None:
            self._bar.set_postfix_str(f"{loss}{rate:,.0f} tokens/s")
        else:
            steps = self._step - self._from_step
            left = f"{_duration((self.total - self._step) * seconds / steps)} left" if steps else "time left unknown"
            line = f"step {self._step}/{self.total}: {loss}{rate:,.0f} tokens/s, {left}"
            print(line, file=self._stream, flush=True)
        self._since, self._from_step, self._tokens = time.monotonic(), self._step, 0

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
