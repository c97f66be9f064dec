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


def engine_of(bench: Bench, model: Transformer, steps: int, **options: Any) -> Engine:
    """Make an engine that writes a block in `steps` forwards."""
    config = GenerationConfig(bench.sizes.block_size, FirstHitting(steps), stop_at_end=False, **options)
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


def variants(bench: Bench, models: dict[str, Transformer], rows: int, **options: Any) -> list[Variant]:
    """Return one and several tokens a step; and, without options of the engine, the autoregressive baseline."""
    size, n = bench.sizes.block_size, bench.sizes.new_tokens

    def engine(steps: int) -> Variant:
        made = engine_of(bench, models["in_place"], steps, **options)
        return Variant(f"{size // steps} a step", lambda: made.generate([[]] * rows, n).nfe)

    found = [engine(size), engine(max(size // 4, 1))]
    if not options:
        with precision_context("auto", bench.device)():
            fused = for_inference(models["next_token"], autocast_dtype(models["next_token"].embedding.weight))

        def decode() -> int:
            decode_one_by_one(fused, rows, n)
            return n

        found.insert(0, Variant(AUTOREGRESSIVE, decode))
    return found


def measured(bench: Bench, rows: int, variant: Variant, switch: str, base: float | None) -> SpeedRow:
    """Time a variant: the first call, and the median of several behind it."""
    forwards: list[int] = []
    seconds = [elapsed(lambda: forwards.append(variant.run()), bench.device) for _ in range(1 + bench.sizes.repeats)]
    median, nfe = statistics.median(seconds[1:]), forwards[-1]
    tokens = rows * bench.sizes.new_tokens
    return SpeedRow(
        rows, variant.name, switch, seconds[0], median, tokens / median, base and base / median, nfe, 1e3 * median / nfe
    )


class Generation(Stage):
    """Generation, with cuDNN's attention and without"""

    seconds: ClassVar[float] = 60

    def run(self, bench: Bench) -> Iterator[SpeedRow]:
        models = bench.models()
        for rows in bench.sizes.texts:
            base = None
            for switch, allowed in (("cuDNN off", False), ("cuDNN on", True)):
                for variant in variants(bench, models, rows):
                    with cudnn_attention(allowed):
                        row = measured(bench, rows, variant, switch, base)
                    if base is None:  # the first one is the baseline
                        base = row.seconds
                        row = dataclasses.replace(row, of_autoregressive=1.0)
                    yield row


def cudnn_attention(allowed: bool) -> AbstractContextManager[Any]:
    """Let torch take cuDNN's attention over a cache inside the block, from which `over_cache` keeps it; or do not."""
    return patch.object(sdpa, "over_cache", lambda device: nullcontext()) if allowed else nullcontext()


class Graphs(Stage):
    """Generation, with CUDA graphs and without"""

    seconds: ClassVar[float] = 30

    def run(self, bench: Bench) -> Iterator[SpeedRow]:
        models = bench.models()
        for rows in bench.sizes.texts:
            base = measured(bench, rows, variants(bench, models, rows)[0], "", None)
            for on in (False, True):
                for variant in variants(bench, models, rows, graphs=on):
                    yield measured(bench, rows, variant, f"graphs {'on' if on else 'off'}", base.seconds)
