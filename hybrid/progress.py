"""Show on stderr how far long work has come: a bar on a terminal (tqdm), else a line now and then.

In a file tqdm would write one line without an end, of which `tail -f` and most logs show nothing.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from threading import Timer
from typing import Any, TextIO, TypeVar

Chunk = TypeVar("Chunk", bound=Sized)

DELAY = 1.0  # seconds before a bar appears, or it is said what is being done
INTERVAL = 10.0  # seconds between two lines
LEAST_STEPS = 10  # from which the time left is estimated
MARKS = 30  # of the last reports, over which it is


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


@contextmanager
def announced(what: str, is_said: bool = True) -> Iterator[None]:
    """Print what is being done, once it has taken `DELAY`; quick work passes in silence."""
    timer = Timer(DELAY, lambda: print(what, file=sys.stderr, flush=True))
    timer.daemon = True
    if is_said:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


class TrainingProgress:
    """Shows the steps, the loss, the speed and the time left of a training loop.

    The first step warms up (kernels, compiling): it counts neither for the speed nor for the time left.
    """

    def __init__(self, total: int, start: int = 0, interval: float = INTERVAL, stream: TextIO | None = None) -> None:
        self.total = total
        self._step = start
        self._interval = interval
        self._stream = sys.stderr if stream is None else stream
        self._bar: Any = None
        self._loss: float | None = None
        self._since = time.monotonic()
        self._tokens = 0  # since `_since`
        self._marks: deque[tuple[float, int]] = deque(maxlen=MARKS)  # when which steps were done, from the first on
        if self._stream.isatty():
            from tqdm import tqdm

            form = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"  # its own time left begins with the first
            self._bar = tqdm(total=total, initial=start, file=self._stream, dynamic_ncols=True, bar_format=form)

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
        now = time.monotonic()
        is_due = now - self._since >= (1.0 if self._bar is not None else self._interval) or step >= self.total
        if is_due:
            self._report(now)
        if is_due or not self._marks:
            self._marks.append((now, step))
            self._since, self._tokens = now, 0

    def _report(self, now: float) -> None:
        facts = [] if self._loss is None else [f"loss {self._loss:.4f}"]
        if self._marks:
            facts.append(f"{self._tokens / max(now - self._since, 1e-9):,.0f} tokens/s")
            began, first = self._marks[0]
            if self._step - first >= LEAST_STEPS:
                seconds = (self.total - self._step) * (now - began) / (self._step - first)
                facts.append(f"{_duration(seconds)} left")
        told = ", ".join(facts)
        if self._bar is not None:
            self._bar.set_postfix_str(told)
        else:
            line = f"step {self._step}/{self.total}"
            print(f"{line}: {told}" if told else line, file=self._stream, flush=True)

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
