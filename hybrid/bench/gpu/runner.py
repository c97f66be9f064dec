"""Run stages in a child process, which is started again behind a stage that it does not survive."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from multiprocessing import get_context
from typing import Any

from hybrid.bench.gpu.child import End, Head, Row, serve
from hybrid.bench.gpu.record import Record
from hybrid.bench.gpu.stage import Bench, Stage

START = 120.0
"""Most seconds that a child may take to import torch and to wake the device."""

POLL = 0.2
"""Seconds between two looks at whether a child lives. Its pipe may be held open by processes that it started."""


class Lost(Exception):
    """The child has died, or was ended; the message says how."""


class Child:
    """A process that runs stages."""

    def __init__(self, stages: Mapping[str, Stage], bench: Bench):
        context = get_context("spawn")  # a forked process cannot use CUDA
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, stages, bench))
        self.process.start()
        theirs.close()

    def receive(self, end: float) -> Any:
        """Return the next message.

        Raises:
            Lost: there will be none, or none came before `end`.
        """
        while True:
            waiting = max(min(POLL, end - time.monotonic()), 0)
            has_ended = self.process.exitcode is not None  # before the look: what it sent last is still read
            if self.pipe.poll(waiting):
                try:
                    return self.pipe.recv()
                except (EOFError, OSError):
                    self.process.join(START)
                    raise Lost(self._how()) from None
            if has_ended:
                raise Lost(self._how())
            if time.monotonic() >= end:
                self.kill()
                raise Lost("killed: its time was over")

    def send(self, name: str) -> None:
        try:
            self.pipe.send(name)
        except OSError:
            self.process.join(START)
            raise Lost(self._how()) from None

    def _how(self) -> str:
        code = self.process.exitcode
        return f"died: {signal.Signals(-code).name}" if code is not None and code < 0 else f"died: exit code {code}"

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Runner:
    """Runs stages one after the other, until `seconds` are over; of what is not run, it says why."""

    def __init__(self, stages: Mapping[str, Stage], bench: Bench, record: Record, seconds: float):
        self.stages, self.bench, self.record = stages, bench, record
        self.end = time.monotonic() + seconds
        self.child: Child | None = None

    def run(self) -> None:
        try:
            for name, stage in self.stages.items():
                started = time.monotonic()
                outcome = self._run(name, stage)
                self.record.end(name, outcome, time.monotonic() - started)
        finally:
            self._drop()

    def _run(self, name: str, stage: Stage) -> str:
        """Run a stage, and return how it ended."""
        try:
            left = self.end - time.monotonic()
            if stage.seconds > left:
                return f"skipped: it may take {stage.seconds:g} s, and {max(left, 0):.0f} s are left"
            child = self.child or self._start()
            child.send(name)
            end = min(time.monotonic() + 2 * stage.seconds, self.end)
            while not isinstance(message := child.receive(end), End):
                assert isinstance(message, Row)
                self.record.row(name, message.row)
        except Lost as lost:
            self._drop()
            return str(lost)
        if not message.usable:
            self._drop()
        return message.outcome

    def _start(self) -> Child:
        self.child = Child(self.stages, self.bench)
        first = self.child.receive(min(time.monotonic() + START, self.end))
        assert isinstance(first, Head)
        self.record.head(first.facts)
        return self.child

    def _drop(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child = None
