"""Evaluate a likelihood on the rows of a split, each rank its share.

The noise of the bound is fixed: it is a function of the row and the draw, so curves compare, between steps and between
runs.

Shape legend: R rows evaluated, g blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybrid.data.batches import PackedTokens
from hybrid.distributed import ALONE, Ranks
from hybrid.likelihoods.base import LikelihoodMethod, Rows, checked
from hybrid.likelihoods.elbo import mean_and_error, monte_carlo
from hybrid.model import Transformer
from hybrid.storage.fields import Fields, counted

NOISE_SEED = 0
"""Of every validation, whatever the seed of the run."""

MAX_COUNTS = 16
"""Curves of loss by number of masked tokens; longer blocks are summarised in this many ranges."""


@dataclass(frozen=True)
class SplitLikelihood:
    """The likelihood of a split by one method at one block size: a line of a results table, and of eval.json.

    Attributes:
        likelihood: a name of `LIKELIHOODS`, or `tightest`; the bound at block size 1 is `exact`.
        nats_per_token: per target token.
        stderr: of the noise, given these rows, in nats per token: 0 where nothing is random, NaN (in a file: none)
            with one draw.
        bits_per_byte: None where the tokens are not the text.
        tokens: target tokens, 0 where they are not known.
        by_count: of a bound, the mean cross-entropy of a masked token by the number of masked tokens of its block (of a
            range of numbers: by its upper end).
        decoder: of a policy.
        latent: of a model with random numbers in MASK, how texts draw them of which this is the likelihood; None: it
            has none, or this reads no MASK.
    """

    block_size: int
    likelihood: str
    nats_per_token: float
    stderr: float
    bits_per_byte: float | None
    tokens: int = 0
    by_count: dict[int, float] = field(default_factory=dict)
    decoder: str | None = None
    latent: str | None = None

    @property
    def perplexity(self) -> float:
        return perplexity(self.nats_per_token)

    @property
    def known_stderr(self) -> float | None:
        """`stderr`; None where one draw has none."""
        return None if math.isnan(self.stderr) else self.stderr

    @property
    def bits_per_nat(self) -> float | None:
        """Bits per byte for each nat per token."""
        if self.bits_per_byte is None:
            return None
        return self.bits_per_byte / self.nats_per_token if self.nats_per_token else 0.0

    def as_json(self) -> dict[str, Any]:
        """Make the line of eval.json."""
        return {
            "block_size": self.block_size, "likelihood": self.likelihood, "nats_per_token": self.nats_per_token,
            "stderr": self.stderr, "perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte,
            "tokens": self.tokens, **({"by_count": self.by_count} if self.by_count else {}),
            **({} if self.decoder is None else {"decoder": self.decoder}),
            **({} if self.latent is None else {"latent": self.latent}),
        }  # fmt: skip

    @classmethod
    def from_json(cls, line: Fields) -> SplitLikelihood:
        """Read a line that `as_json` has made.

        Raises:
            ValueError: a field that is missing or of another kind.
        """
        counts = line.inner("by_count", None)
        return cls(
            line.integer("block_size", 1), line.text("likelihood"), line.number("nats_per_token"),
            line.number("stderr", math.nan, least=0), line.number("bits_per_byte", None), line.integer("tokens", 0, 0),
            {} if counts is None else counted(counts.content), line.text("decoder", None),
            line.text("latent", None),
        )  # fmt: skip


class RowLikelihoods(NamedTuple):
    """Likelihoods of all rows evaluated, float64 (R,) each, and their target tokens (R,)."""

    nll: Tensor
    stderr: Tensor
    tokens: Tensor
    blocks: Tensor  # (R, g) float64, nats of each block of a policy; (R, 0) of anything else


def perplexity(nats: float) -> float:
    """exp of nats per token; infinite where a float cannot hold it (a model that has diverged is no error)."""
    return math.exp(nats) if not nats > 700 else math.inf


@torch.no_grad()
def bound(
    model: Transformer, split: PackedTokens, block_size: int, *, rows: int = 0, draws: int = 4, batch_rows: int = 32,
    seed: int = NOISE_SEED, precision: Callable[[], AbstractContextManager], ranks: Ranks = ALONE,
    heed: Callable[[], None] | None = None,
) -> SplitLikelihood:  # fmt: skip
    """Evaluate the bound of the first `rows` rows of a split (0: all), by Monte Carlo, with its curve by count.

    The result depends neither on `batch_rows` nor on the number of ranks.

    Args:
        heed: called before each batch, and may raise what ends it.

    Raises:
        ValueError: the rows hold no target token.
    """
    device = model.device
    totals = torch.zeros(3, dtype=torch.float64, device=device)  # nats, variance, targets
    by_count = torch.zeros(2, block_size + 1, dtype=torch.float64, device=device)
    for _, _, some in _batches(split, device, rows, batch_rows, ranks):
        if heed is not None:
            heed()
        with precision():
            values, loss = monte_carlo(model, some, block_size, draws, seed)
        mean, error = mean_and_error(values)
        totals += torch.stack([mean.sum(), (error**2).sum(), some.is_target.sum()])
        by_count += torch.stack(loss.by_count(block_size))
    nats, variance, tokens = ranks.sum(totals).tolist()
    sums, counts = ranks.sum(by_count).tolist()
    if tokens == 0:
        n_rows = _number_of(rows, split)
        raise ValueError(f"eval.rows: the {n_rows} rows evaluated hold no target token; raise eval.rows")
    name, error = ("exact", 0.0) if block_size == 1 else ("bound", math.sqrt(variance) / tokens)
    bits = split.bits_per_byte(nats / tokens)
    return SplitLikelihood(block_size, name, nats / tokens, error, bits, int(tokens), _ranges(sums, counts))


@torch.no_grad()
def by_row(
    model: Transformer, split: PackedTokens, block_size: int, method: LikelihoodMethod, *, rows: int = 0,
    draws: int = 4, batch_rows: int = 32, seed: int = NOISE_SEED, precision: Callable[[], AbstractContextManager],
    ranks: Ranks = ALONE,
) -> RowLikelihoods:  # fmt: skip
    """Evaluate a method on the first `rows` rows of a split (0: all), row by row; every rank gets all of them.

    The result depends neither on `batch_rows` nor on the number of ranks.

    Raises:
        ValueError: the method cannot do this block size.
    """
    parts = []
    for index, is_real, some in _batches(split, model.device, rows, batch_rows, ranks):
        with precision():
            result = checked(method.nll(model, some, block_size, draws, seed), method, some)
        blocks = result.nll.new_empty(len(result.nll), 0) if result.blocks is None else result.blocks
        columns = torch.tensor(index), result.nll.cpu(), result.stderr.cpu(), result.tokens.cpu(), blocks.cpu()
        parts.append([column[torch.tensor(is_real)] for column in columns])
    numbers, *values = map(torch.cat, zip(*chain(*ranks.gather(parts)), strict=True))
    order = numbers.argsort()
    return RowLikelihoods(*(column[order] for column in values))


def _batches(
    split: PackedTokens, device: torch.device, rows: int, batch_rows: int, ranks: Ranks
) -> Iterator[tuple[list[int], list[bool], Rows]]:
    """`row_batches` with their tokens on `device`; of a row that does not count, no token does."""
    for index, is_real in row_batches(_number_of(rows, split), batch_rows, ranks):
        batch = split.rows(index).to(device)
        is_target = batch.is_target & torch.tensor(is_real, device=device)[:, None]
        yield index, is_real, Rows(batch.tokens, is_target, batch.documents, torch.tensor(index, device=device))


def _number_of(rows: int, split: PackedTokens) -> int:
    return min(rows, split.n_rows) if rows else split.n_rows


def row_batches(n_rows: int, batch_rows: int, ranks: Ranks) -> Iterator[tuple[list[int], list[bool]]]:
    """This rank's rows in batches, and which of them count.

    All ranks get as many rows, since a model that is sharded over them runs on all at once: one that has fewer of its
    own takes the last row once more, which does not count.
    """
    share = ranks.share(-(-n_rows // ranks.world) * ranks.world)
    for start in range(0, len(share), batch_rows):
        index = share[start : start + batch_rows]
        yield [min(i, n_rows - 1) for i in index], [i < n_rows for i in index]


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
