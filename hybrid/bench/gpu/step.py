"""A training step and its head: time, memory, and the share of what the card reaches at best."""

from __future__ import annotations

import copy
import gc
import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hybrid.bench.cost import AllowedPairs, count_flops, matmul_rate
from hybrid.bench.gpu.stage import Bench, Stage
from hybrid.bench.training import AUTOREGRESSIVE, STRAIGHTFORWARD, make_step
from hybrid.device import autocast_dtype, precision_context, resolve_precision
from hybrid.model.kernels import cross_entropy
from hybrid.results.table import column
from hybrid.results.timing import elapsed

IN_A_ROW = 5
"""Calls between two looks at the clock: a loop that trains does not wait for each of them."""


def best_rate(bench: Bench) -> float:
    """Measure the FLOP/s of a large product in the precision in which the device trains."""
    bf16 = resolve_precision("auto", bench.device) == "bf16"
    return matmul_rate(bench.device, torch.bfloat16 if bf16 else torch.float32, bench.sizes.product)


def timed(run: Callable[[], Any], bench: Bench) -> tuple[float, float]:
    """Return the seconds of the first call, and of one of several in a row, the median."""

    def seconds(calls: int) -> float:
        return elapsed(lambda: [run() for _ in range(calls)], bench.device) / calls

    first = seconds(1)
    seconds(1)
    calls = IN_A_ROW if bench.is_card else 1
    return first, statistics.median(seconds(calls) for _ in range(bench.sizes.repeats))


def forget_compiled() -> None:
    """Let the next variant compile for itself: torch counts recompilations of a function over all of them.

    What was compiled holds its layer, and is held by it, so that only the collector frees it.
    """
    torch.compiler.reset()
    gc.collect()


class Peak:
    """The most memory that is allocated on a GPU since this was made, beyond what was then; None on a CPU."""

    def __init__(self, bench: Bench):
        self.device = bench.device if bench.is_card else None
        if self.device is not None:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)

    @property
    def mib(self) -> float | None:
        if self.device is None:
            return None
        return (torch.cuda.max_memory_allocated(self.device) - self.before) / 2**20


@dataclass(frozen=True)
class StepRow:
    """An optimizer step of one variant."""

    variant: str = column("variant")
    rows: int = column("rows")
    compiled: bool = column("layers compiled")
    first: float = column("first step, s", ".1f")
    ms: float = column("ms", ".1f")
    tokens_per_second: float = column("tokens/s", round)
    tflops: float = column("TFLOP of allowed pairs", ".3g")
    of_peak: float = column("of the product's rate", ".3f")
    peak_mib: float | None = column("peak MiB", round)


class Steps(Stage):
    """A training step"""

    seconds: ClassVar[float] = 110

    def run(self, bench: Bench) -> Iterator[StepRow]:
        rate, hybrid = best_rate(bench), f"block size {bench.sizes.block_size}"
        first, *more = bench.sizes.rows
        cases = [
            *((name, first, True) for name in (hybrid, AUTOREGRESSIVE, STRAIGHTFORWARD)),
            *((name, first, False) for name in (hybrid, AUTOREGRESSIVE, STRAIGHTFORWARD)),
            *itertools.product((hybrid, AUTOREGRESSIVE, STRAIGHTFORWARD), more, (True, False)),
        ]
        models = bench.models()
        for name, rows, compiled in cases:
            if compiled and not bench.is_card:  # it takes a minute on a CPU
                continue
            forget_compiled()
            setting = bench.setting(rows, "on" if compiled else "off")
            model, pairs = models[setting.variants[name][0]], AllowedPairs()
            flops = count_flops(make_step(bench.setting(rows), name, pairs, copy.deepcopy(model)), pairs)
            peak = Peak(bench)
            first_call, seconds = timed(make_step(setting, name, model=copy.deepcopy(model)), bench)
            yield StepRow(
                name, rows, setting.compiles, first_call, 1e3 * seconds, rows * setting.seq_len / seconds,
                flops / 1e12, flops / seconds / rate, peak.mib,
            )  # fmt: skip


@dataclass(frozen=True)
class HeadRow:
    """Head and loss of the rows that a step masks, forward and backward, with one size of its chunks."""

    logits: int = column("logits at a time")
    rows: int = column("rows")
    ms: float = column("ms", ".2f")
    of_peak: float = column("of the product's rate", ".3f")
    peak_mib: float | None = column("peak MiB", round)


class Heads(Stage):
    """Head and loss, by the size of their chunks"""

    seconds: ClassVar[float] = 15

    def run(self, bench: Bench) -> Iterator[HeadRow]:
        s, device, rate = bench.sizes, bench.device, best_rate(bench)
        m = s.rows[0] * s.seq_len * (s.block_size + 1) // (2 * s.block_size)
        precision = precision_context("auto", device)
        with precision():
            dtype = autocast_dtype(torch.empty(0, device=device))
        hidden = torch.randn(m, s.model.dim, device=device).to(dtype).requires_grad_()
        matrix = (0.02 * torch.randn(s.vocab, s.model.dim, device=device)).requires_grad_()
        targets, weights = torch.randint(0, s.vocab, (m,), device=device), torch.rand(m, device=device)

        def run() -> None:
            with precision():
                loss = cross_entropy.weighted_cross_entropy(hidden, matrix, targets, weights)[0]
            torch.autograd.grad(loss, (hidden, matrix))

        before = cross_entropy.LOGITS
        try:
            for logits in s.chunks:
                cross_entropy.LOGITS = logits
                peak = Peak(bench)
                _, seconds = timed(run, bench)
                yield HeadRow(logits, m, 1e3 * seconds, 3 * 2 * m * s.vocab * s.model.dim / seconds / rate, peak.mib)
        finally:
            cross_entropy.LOGITS = before
