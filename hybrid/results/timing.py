"""Variants timed in turns, so that whatever else the machine does falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of the counted repeats of one variant."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def min_max(self) -> str:
        return f"{1e3 * min(self.seconds):.1f}-{1e3 * max(self.seconds):.1f}"


def interleave(
    variants: dict[str, Callable[[], Any]],
    repeats: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
    uncounted: int = 2,
) -> dict[str, Timing]:
    """Time every variant `repeats` times, in turns, after a few that are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + uncounted):
        for name, run in variants.items():
            taken = elapsed(run, device, clock)
            if repeat >= uncounted:
                seconds[name].append(taken)
    return {name: Timing(s) for name, s in seconds.items()}


def clock_of(device: torch.device) -> tuple[str, Callable[[], float]]:
    """Take the time of a single thread, which other work on the machine hardly changes; of several that of the wall."""
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return "this process's thread", time.process_time
    return "the wall clock", time.perf_counter


def elapsed(run: Callable[[], Any], device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds of one call, until the device has done it; what was asked of it before is not counted."""
    wait(device)
    started = clock()
    run()
    wait(device)
    return clock() - started


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
