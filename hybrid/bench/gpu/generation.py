"""Generation: tokens a second, a token or several a step, with and without what is to make it faster."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar
from unittest.mock import patch

from hybrid.bench.baselines import decode_one_by_one
from hybrid.bench.gpu.stage import Bench, Stage
from hybrid.decoding import FirstHitting, GenerationConfig
from hybrid.decoding.engine import Engine
from hybrid.device import autocast_dtype, precision_context
from hybrid.model import Transformer, sdpa
from hybrid.model.fused import for_inference
from hybrid.results.table import column
from hybrid.results.timing import elapsed

AUTOREGRESSIVE = "autoregressive, cache"


SECONDS = 4.0
"""After so many a variant is not called again, if it has been called twice."""


def engine_of(bench: Bench, model: Transformer, size: int, steps: int, **options: Any) -> Engine:
    """Make an engine that writes a block of `size` in `steps` forwards."""
    config = GenerationConfig(size, FirstHitting(steps), stop_at_end=False, **options)
    return Engine(model, bench.sizes.new_tokens, config, precision=precision_context("auto", bench.device))


@dataclass(frozen=True)
class SpeedRow:
    """Texts written by one variant."""

    texts: int = column("texts at once")
    variant: str = column("variant")
    switch: str = column("switch")
    first: float = column("first call, s", ".2f")
    seconds: float = column("seconds", ".3f")
    tokens_per_second: float = column("tokens/s", round)
    of_autoregressive: float | None = column("times autoregressive", ".2f")
    nfe: int = column("forwards")
    ms_per_forward: float = column("ms a forward", ".3f")


@dataclass(frozen=True)
class Variant:
    """A way to write texts: `run` returns its number of forwards."""

    name: str
    run: Callable[[], int]


def by_engine(bench: Bench, models: dict[str, Transformer], rows: int, **options: Any) -> list[Variant]:
    """Return one and several tokens a step, and the autoregressive mode: a block size of 1."""
    size, n = bench.sizes.block_size, bench.sizes.new_tokens

    def variant(name: str, prediction: str, size: int, steps: int) -> Variant:
        engine = engine_of(bench, models[prediction], size, steps, **options)
        return Variant(name, lambda: engine.generate([[]] * rows, n).nfe)

    few = max(size // 4, 1)
    return [
        variant("1 a step", "in_place", size, size),
        variant(f"{size // few} a step", "in_place", size, few),
        variant("block size 1", "next_token", 1, 1),
    ]


def autoregressive(bench: Bench, model: Transformer, rows: int) -> Variant:
    """Return the baseline: the shortest loop over a cache that one would write."""
    with precision_context("auto", bench.device)():
        fused = for_inference(model, autocast_dtype(model.embedding.weight))

    def decode() -> int:
        decode_one_by_one(fused, rows, bench.sizes.new_tokens)
        return bench.sizes.new_tokens

    return Variant(AUTOREGRESSIVE, decode)


def measured(bench: Bench, rows: int, variant: Variant, switch: str, base: float | None) -> SpeedRow:
    """Time a variant: the first call, and the median of those behind it."""
    forwards: list[int] = []
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) <= bench.sizes.repeats and sum(seconds) < SECONDS):
        seconds.append(elapsed(lambda: forwards.append(variant.run()), bench.device))
    median, nfe = statistics.median(seconds[1:]), forwards[-1]
    tokens = rows * bench.sizes.new_tokens
    return SpeedRow(
        rows, variant.name, switch, seconds[0], median, tokens / median, base and base / median, nfe, 1e3 * median / nfe
    )


class Generation(Stage):
    """Generation, with cuDNN's attention and without"""

    seconds: ClassVar[float] = 40

    def run(self, bench: Bench) -> Iterator[SpeedRow]:
        models, base = bench.models(), {}
        for switch, allowed in (("cuDNN off", False), ("cuDNN on", True)):
            for rows in bench.sizes.texts:
                *_, block_size_1 = by_engine(bench, models, rows)
                for variant in (autoregressive(bench, models["next_token"], rows), block_size_1):
                    with cudnn_attention(allowed):
                        row = measured(bench, rows, variant, switch, base.get(rows))
                    if rows not in base:  # the first one is the baseline
                        base[rows] = row.seconds
                        row = dataclasses.replace(row, of_autoregressive=1.0)
                    yield row


def cudnn_attention(allowed: bool) -> AbstractContextManager[Any]:
    """Let torch take cuDNN's attention over a cache inside the block, from which `over_cache` keeps it; or do not."""
    return patch.object(sdpa, "over_cache", lambda device: nullcontext()) if allowed else nullcontext()


class Graphs(Stage):
    """Generation, with CUDA graphs and without"""

    seconds: ClassVar[float] = 60

    def run(self, bench: Bench) -> Iterator[SpeedRow]:
        models = bench.models()
        for rows in bench.sizes.texts:
            base = measured(bench, rows, autoregressive(bench, models["next_token"], rows), "graphs off", None)
            yield dataclasses.replace(base, of_autoregressive=1.0)
            for switch in ("on", "off"):
                for variant in by_engine(bench, models, rows, graphs=switch == "on"):
                    yield measured(bench, rows, variant, f"graphs {switch}", base.seconds)
