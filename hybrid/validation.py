"""What is looked at during training: the bound on validation rows, and samples.

The noise is fixed: it is a function of the row and the draw, so curves compare, between steps and between runs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from hybrid.data import PackedTokens
from hybrid.decoding.engine import Engine
from hybrid.decoding.shared import generate_shared
from hybrid.likelihood import mean_and_error, monte_carlo, row_nll
from hybrid.model import Transformer
from hybrid.options import option
from hybrid.ranks import ALONE, Ranks
from hybrid.tokenizer import Tokenizer

log = logging.getLogger(__name__)

NOISE_SEED = 0
"""Of every validation, whatever the seed of the run."""

MAX_COUNTS = 16
"""Curves of loss by number of masked tokens; longer blocks are summarised in this many ranges."""


@dataclass
class EvalConfig:
    rows: int = option(64, "validation rows used during training, the first ones (0: all)")
    draws: int = option(4, "noise draws per row; the standard error comes from them")
    batch_rows: int = option(32, "rows per forward; the result does not depend on it")
    block_sizes: Any = option(None, "block sizes evaluated: a list, or null for those that are trained")
    sample_tokens: int = option(256, "new tokens of each sample")
    sample_prompts: Any = option(["", "The "], "prompts of the samples")


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


@dataclass
class Validator:
    """Bounds at several block sizes -> metrics."""

    model: Transformer
    split: PackedTokens
    block_sizes: Sequence[int]
    config: EvalConfig
    precision: Callable[[], AbstractContextManager]
    ranks: Ranks = ALONE
    latest: list[Bound] = field(default_factory=list)

    def __call__(self) -> dict[str, Any]:
        self.latest = [
            bound(
                self.model, self.split, size, rows=self.config.rows, draws=self.config.draws,
                batch_rows=self.config.batch_rows, precision=self.precision, ranks=self.ranks,
            )
            for size in self.block_sizes
        ]  # fmt: skip
        n = len(self.latest)
        metrics: dict[str, Any] = {
            "val/nelbo": sum(b.nelbo for b in self.latest) / n,
            "val/perplexity": perplexity(sum(b.nelbo for b in self.latest) / n),
        }
        bits = self.split.bits_per_byte(metrics["val/nelbo"])
        if bits is not None:
            metrics["val/bits_per_byte"] = bits
        for b in self.latest:
            metrics[f"val/nelbo/b{b.block_size}"] = b.nelbo
            metrics[f"val/stderr/b{b.block_size}"] = b.stderr
            metrics[f"val/likelihood/b{b.block_size}"] = b.method
            for count, loss in b.by_count.items():
                metrics[f"val_by_count/b{b.block_size}/n{count:03d}"] = loss
        return metrics


@dataclass
class Sampler:
    """Prompts -> text and the figures of its generation. Prompts that can't be continued are left out (a warning).

    Each rank continues its share of them.
    """

    engine: Engine
    tokenizer: Tokenizer
    prompts: Sequence[str]
    max_new_tokens: int
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        self.prompts = [prompt for prompt in self.prompts if self._fits(prompt)]

    def _fits(self, prompt: str) -> bool:
        try:
            n = len(self.tokenizer.encode(prompt))
        except ValueError as error:  # a character that the vocabulary does not have
            log.warning("eval.sample_prompts: %r is left out: %s", prompt, error)
            return False
        if n >= self.engine.seq_len:
            log.warning(
                "eval.sample_prompts: %r is left out: its %d tokens fill the context of %d (data.seq_len)",
                prompt, n, self.engine.seq_len,
            )  # fmt: skip
        return n < self.engine.seq_len

    def __call__(self) -> tuple[str, dict[str, float]]:
        ids = [self.tokenizer.encode(prompt) for prompt in self.prompts]
        room = self.engine.seq_len - max(len(prompt) for prompt in ids)
        result = generate_shared(self.engine, ids, min(self.max_new_tokens, room), self.ranks)
        n = sum(len(tokens) for tokens in result.tokens)
        texts = [
            f"--- {prompt!r}\n{prompt}{self.tokenizer.decode(new)}\n"
            for prompt, new in zip(self.prompts, result.tokens, strict=True)
        ]
        figures = {"gen/tokens_per_second": n / result.seconds, "gen/tokens_per_forward": n / max(result.nfe, 1)}
        return "\n".join(texts), figures
