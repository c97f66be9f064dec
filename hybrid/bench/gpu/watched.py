"""What a profiler sees of a training step and of a generation, and where the host waits for the card."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import hybrid
from hybrid.bench.gpu.generation import engine_of
from hybrid.bench.gpu.stage import Bench, Stage, needs_card
from hybrid.bench.gpu.trained import Training, random_text
from hybrid.results.table import column
from hybrid.results.timing import wait

KERNELS = 12
"""Kernels of a table."""

ROOT = Path(hybrid.__file__).parent


def workloads(bench: Bench) -> dict[str, tuple[int, Callable[[], Any]]]:
    """Name -> how many steps or forwards it has, and a call that runs them; each has been called before."""
    s = bench.sizes
    split, steps = random_text(s.vocab, s.seq_len), iter(range(10**6))
    step = Training(s.model, split, s.vocab, s.block_size, s.rows[0], 10**6).stepper(bench.device, "auto")
    model = bench.setting(1).build("in_place")
    engine = engine_of(bench, model, s.block_size, s.block_size // 4, graphs=bench.is_card)
    engine.generate([[]], s.new_tokens // 4)
    for _ in range(2):
        step(next(steps))
    forwards = engine.generate([[]], s.new_tokens // 4).nfe
    return {
        "training step": (3, lambda: [step(next(steps)) for _ in range(3)]),
        "generation, a forward": (forwards, lambda: engine.generate([[]], s.new_tokens // 4)),
    }


@dataclass(frozen=True)
class WaitRow:
    """A place where the host waits for the device."""

    work: str = column("work")
    place: str = column("place")
    times: float = column("times in each", ".2f")


class Waits(Stage):
    """Where the host waits for the card"""

    seconds: ClassVar[float] = 30

    def missing(self, bench: Bench) -> str | None:
        return needs_card(bench)

    def run(self, bench: Bench) -> Iterator[WaitRow]:
        for name, (n, run) in workloads(bench).items():
            wait(bench.device)
            with waits() as places:
                run()
            for place, count in places.most_common():
                yield WaitRow(name, place, count / n)
            if not places:
                yield WaitRow(name, "nowhere", 0.0)


@contextlib.contextmanager
def waits() -> Iterator[Counter[str]]:
    """Count the calls for which the host waits, by the innermost place of this package."""
    places: Counter[str] = Counter()

    def count(message: Any, *_: Any, **__: Any) -> None:
        if "called a synchronizing" in str(message):  # what it says of the mode itself is no wait
            places[innermost()] += 1

    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = count
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode(before)


def innermost() -> str:
    """Return file:line of the innermost caller in this package, outside of this room."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "bench"):
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


@dataclass(frozen=True)
class KernelRow:
    """A kernel, and its share of the time in which the device computes."""

    work: str = column("work")
    kernel: str = column("kernel")
    calls: float = column("calls in each", ".1f")
    ms: float = column("ms in each", ".3f")
    share: float = column("share", ".3f")


class Profile(Stage):
    """What a profiler sees"""

    seconds: ClassVar[float] = 20

    def run(self, bench: Bench) -> Iterator[KernelRow]:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.is_card else [])]
        for name, (n, run) in workloads(bench).items():
            wait(bench.device)
            with profile(activities=activities) as profiler:
                run()
                wait(bench.device)
            times = _times(profiler, bench)
            total = sum(time for _, time in times.values())
            for key in sorted(times, key=lambda key: times[key][1], reverse=True)[:KERNELS]:
                count, time = times[key]
                yield KernelRow(name, key[:80], count / n, time / n / 1e3, time / total if total else 0.0)
            self._write(profiler, bench, name)

    @staticmethod
    def _write(profiler: profile, bench: Bench, name: str) -> None:
        """Write what chrome://tracing shows, compressed."""
        if bench.traces is not None:
            path = bench.traces.with_name(f"{bench.traces.name}-{name.split()[0].strip(',')}.trace.json")
            profiler.export_chrome_trace(str(path))
            with open(path, "rb") as source, gzip.open(f"{path}.gz", "wb") as target:
                shutil.copyfileobj(source, target)
            path.unlink()


def _times(profiler: profile, bench: Bench) -> dict[str, tuple[int, float]]:
    """Kernel -> calls and microseconds. On a card the operators that launch kernels are given the same time again."""
    if not bench.is_card:
        return {event.key: (event.count, event.self_cpu_time_total) for event in profiler.key_averages()}
    return {
        event.key: (event.count, event.self_device_time_total)
        for event in profiler.key_averages()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    }
