"""Stages that end in every way, for tests of what runs them. A child process imports this module."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hybrid.bench.gpu.stage import Bench, Stage
from hybrid.results.table import column


@dataclass(frozen=True)
class Numbered:
    number: int = column("number")
    process: int = column("process")


def rows(n: int) -> Iterator[Numbered]:
    for number in range(n):
        yield Numbered(number, os.getpid())


class Fine(Stage):
    """Two rows."""

    seconds: ClassVar[float] = 20

    def run(self, bench: Bench) -> Iterator[Numbered]:
        yield from rows(2)


class Raises(Stage):
    """A row, and an error."""

    seconds: ClassVar[float] = 20

    def run(self, bench: Bench) -> Iterator[Numbered]:
        yield from rows(1)
        raise RuntimeError("no kernel\nimage")


class Dies(Stage):
    """A row, and a signal."""

    seconds: ClassVar[float] = 20

    def run(self, bench: Bench) -> Iterator[Numbered]:
        yield from rows(1)
        os.kill(os.getpid(), signal.SIGSEGV)


class Hangs(Stage):
    """A row, and nothing more."""

    seconds: ClassVar[float] = 2

    def run(self, bench: Bench) -> Iterator[Numbered]:
        yield from rows(1)
        time.sleep(600)


class Slow(Stage):
    """Rows without end."""

    seconds: ClassVar[float] = 3

    def run(self, bench: Bench) -> Iterator[Numbered]:
        while True:
            time.sleep(self.seconds)
            yield from rows(1)


class Lacks(Stage):
    """Nothing, for want of a switch."""

    seconds: ClassVar[float] = 20

    def missing(self, bench: Bench) -> str | None:
        return "there is no switch"

    def run(self, bench: Bench) -> Iterator[Numbered]:
        raise AssertionError("it lacks something")


class TooLong(Fine):
    """More time than there is."""

    seconds: ClassVar[float] = 1000


@dataclass(frozen=True)
class Looks(Stage):
    """What is on the disk while a stage goes on."""

    path: Path
    mark: int
    seconds: ClassVar[float] = 20

    def run(self, bench: Bench) -> Iterator[Numbered]:
        yield Numbered(self.mark, os.getpid())
        end = time.monotonic() + 10
        while not self.seen() and time.monotonic() < end:
            time.sleep(0.02)
        yield Numbered(self.seen(), os.getpid())

    def seen(self) -> int:
        return self.path.read_text().count(f" {self.mark}")
