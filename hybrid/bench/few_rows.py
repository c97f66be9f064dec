"""What a forward of a few rows of each text costs, against one of a single row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hybrid.bench.rounds import acceptance_needed
from hybrid.results.table import column

if TYPE_CHECKING:
    from hybrid.lm import LanguageModel

STEPS, REPEATS = 16, 7
"""Forwards timed at once, and how often at least: they are short."""


@dataclass(frozen=True)
class ForwardRow:
    """One forward over half a text of keys and values; two of them are a round."""

    batch: int = column("batch")
    rows: int = column("rows of a text")
    milliseconds: float = column("ms", partial(round, ndigits=2))
    of_one: float = column("of one row", partial(round, ndigits=2))
    pays_above: float | None = column("a round pays above", partial(round, ndigits=2))
    needed: float | None = column("acceptance needed", partial(round, ndigits=2))


def measure(
    lm: LanguageModel, read: int, batches: Sequence[int], lengths: Sequence[int], repeats: int
) -> Iterator[ForwardRow]:
    """Time forwards of clean rows behind `read` tokens, for each batch and length."""
    from hybrid.model.fused import for_inference
    from hybrid.results.timing import clock_of, interleave

    model = for_inference(lm.model, lm.model.dtype)
    for batch in batches:
        sizes = sorted({1, *lengths})
        runs = {str(n): _forward(model, batch, read, n) for n in sizes}
        timings = interleave(runs, max(repeats, REPEATS), lm.device, clock_of(lm.device)[1])
        for n in sizes:
            of_one = timings[str(n)].median / timings["1"].median
            pays = () if n == 1 else (2 * of_one, acceptance_needed(2 * of_one, n))
            yield ForwardRow(batch, n, 1e3 * timings[str(n)].median / STEPS, of_one, *(pays or (None, None)))


def _forward(model: Any, batch: int, read: int, n: int) -> Callable[[], None]:
    import torch

    from hybrid.model.block_pass import BlockRows, Sight, rows_hidden

    cache = model.new_cache(batch, read + n)
    tokens = torch.zeros(batch, n, dtype=torch.long, device=model.device)
    rows = BlockRows([read] * batch, list(tokens), tokens[:, :0], [0] * batch)

    def run() -> None:
        with torch.no_grad():
            for _ in range(STEPS):
                model.head(rows_hidden(model, cache, rows, Sight(1, reads_clean=True)))

    return run
