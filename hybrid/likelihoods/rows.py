"""Likelihoods of the rows of a split.

The noise is fixed: it is a function of the row and the draw, so curves compare, between steps and between runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from hybrid.data.batches import PackedTokens
from hybrid.distributed import ALONE, Ranks
from hybrid.likelihoods.likelihood import mean_and_error, monte_carlo, row_nll
from hybrid.model import Transformer

NOISE_SEED = 0
"""Of every validation, whatever the seed of the run."""

MAX_COUNTS = 16
"""Curves of loss by number of masked tokens; longer blocks are summarised in this many ranges."""


@dataclass(frozen=True)
class Bound:
    """The bound of a split at one block size, in nats per target token; at block size 1 it is the exact NLL."""

    block_size: int
    nelbo: float
    stderr: float  # of the noise, given these rows; NaN with one draw, 0 where nothing is random
    bits_per_byte: float | None  # None where the tokens are not the text
    tokens: int
    by_count: dict[int, float]  # mean cross-entropy by number of masked tokens in the block (upper end of a range)

    @property
    def method(self) -> str:
        return "exact" if self.block_size == 1 else "bound"

    @property
    def perplexity(self) -> float:
        return perplexity(self.nelbo)


def perplexity(nats: float) -> float:
    """exp of nats per token; infinite where a float cannot hold it (a model that has diverged is no error)."""
    return math.exp(nats) if not nats > 700 else math.inf


@torch.no_grad()
def bound(
    model: Transformer, split: PackedTokens, block_size: int, *, rows: int = 0, draws: int = 4, batch_rows: int = 32,
    seed: int = NOISE_SEED, precision: Callable[[], AbstractContextManager], ranks: Ranks = ALONE,
) -> Bound:  # fmt: skip
    """Evaluate the first `rows` rows of a split (0: all), each rank its share of them.

    The result does not depend on `batch_rows`, nor on the number of ranks.
    """
    n_rows = min(rows, split.n_rows) if rows else split.n_rows
    device = model.embedding.weight.device
    totals = torch.zeros(3, dtype=torch.float64, device=device)  # nats, variance, targets
    by_count = torch.zeros(2, block_size + 1, dtype=torch.float64, device=device)
    for index, is_real in row_batches(n_rows, batch_rows, ranks):
        batch = split.rows(index).to(device)
        is_target = batch.is_target & torch.tensor(is_real, device=device)[:, None]
        keys = torch.tensor(index, device=device)
        with precision():
            values, loss = monte_carlo(model, batch.tokens, block_size, draws, seed, batch.documents, is_target, keys)
        mean, error = mean_and_error(values)
        totals += torch.stack([mean.sum(), (error**2).sum(), is_target.sum()])
        by_count += torch.stack(loss.by_count(block_size))
    nats, variance, tokens = ranks.sum(totals).tolist()
    sums, counts = ranks.sum(by_count).tolist()
    if tokens == 0:
        raise ValueError(f"eval.rows: the {n_rows} rows evaluated hold no target token; raise eval.rows")
    nelbo = nats / tokens
    return Bound(
        block_size,
        nelbo,
        0.0 if block_size == 1 else math.sqrt(variance) / tokens,
        split.bits_per_byte(nelbo),
        int(tokens),
        _ranges(sums, counts),
    )


def row_batches(n_rows: int, batch_rows: int, ranks: Ranks) -> Iterator[tuple[list[int], list[bool]]]:
    """This rank's rows in batches, and which of them count.

    All ranks get as many rows, since a model that is spread over them runs on all at once: one that has fewer of its
    own takes the last row once more, which does not count.
    """
    share = ranks.share(-(-n_rows // ranks.world) * ranks.world)
    for start in range(0, len(share), batch_rows):
        index = share[start : start + batch_rows]
        yield [min(i, n_rows - 1) for i in index], [i < n_rows for i in index]


@torch.no_grad()
def any_order(
    model: Transformer, split: PackedTokens, block_size: int, *, rows: int = 0, batch_rows: int = 32,
    precision: Callable[[], AbstractContextManager], ranks: Ranks = ALONE,
) -> tuple[float, int]:  # fmt: skip
    """Exact any-order NLL of the first `rows` rows of a split (0: all), in nats per target token, and their number."""
    n_rows = min(rows, split.n_rows) if rows else split.n_rows
    device = model.embedding.weight.device
    totals = torch.zeros(2, dtype=torch.float64, device=device)  # nats, targets
    for index, is_real in row_batches(n_rows, batch_rows, ranks):
        batch = split.rows(index).to(device)
        is_target = batch.is_target & torch.tensor(is_real, device=device)[:, None]
        with precision():
            result = row_nll(
                model, batch.tokens, block_size, "enumerate", documents=batch.documents, is_target=is_target
            )
        totals += torch.stack([result.nll.sum(), result.tokens.sum()])
    nats, tokens = ranks.sum(totals).tolist()
    return nats / max(tokens, 1), int(tokens)


def _ranges(sums: list[float], counts: list[float]) -> dict[int, float]:
    """Mean by count, counts gathered into at most MAX_COUNTS ranges named by their upper end."""
    size = len(sums) - 1
    width = -(-size // MAX_COUNTS)
    means = {}
    for low in range(1, size + 1, width):
        high = min(low + width - 1, size)
        n = sum(counts[low : high + 1])
        if n:
            means[high] = sum(sums[low : high + 1]) / n
    return means
