"""What is looked at during training: the bound on validation rows, and samples.

The noise is fixed: it is a function of the row and the draw, so curves compare, between steps and between runs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from hybrid.data import PackedTokens
from hybrid.decoding.engine import Engine
from hybrid.likelihood import mean_and_error, monte_carlo, row_nll
from hybrid.model import Transformer
from hybrid.options import option
from hybrid.tokenizer import Tokenizer

log = logging.getLogger(__name__)

NOISE_SEED = 0
"""Of every validation, whatever the seed of the run."""

MAX_COUNTS = 16
"""Curves of loss by number of masked tokens; longer blocks are summarised in this many ranges."""


@dataclass
class EvalConfig:
    rows: int = option(64, "validation rows used during training (0: all)")
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
    bits_per_byte: float
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
    seed: int = NOISE_SEED, precision: Callable[[], AbstractContextManager],
) -> Bound:  # fmt: skip
    """Evaluate the first `rows` rows of a split (0: all). The result does not depend on `batch_rows`."""
    n_rows = min(rows, split.n_rows) if rows else split.n_rows
    device = model.embedding.weight.device
    nats, variance, tokens = 0.0, 0.0, 0
    sums = torch.zeros(block_size + 1, dtype=torch.float64, device=device)
    counts = torch.zeros_like(sums)
    for start in range(0, n_rows, batch_rows):
        index = range(start, min(start + batch_rows, n_rows))
        batch = split.rows(list(index)).to(device)
        keys = torch.tensor(list(index), device=device)
        with precision():
            values, loss = monte_carlo(
                model, batch.tokens, block_size, draws, seed, batch.documents, batch.is_target, keys
            )
        mean, error = mean_and_error(values)
        nats += float(mean.sum())
        variance += float((error**2).sum())
        tokens += int(batch.is_target.sum())
        part_sums, part_counts = loss.by_count(block_size)
        sums += part_sums
        counts += part_counts
    if tokens == 0:
        raise ValueError(f"eval.rows: the {n_rows} rows evaluated hold no target token; raise eval.rows")
    nelbo = nats / tokens
    return Bound(
        block_size,
        nelbo,
        0.0 if block_size == 1 else math.sqrt(variance) / tokens,
        nelbo / math.log(2) / split.bytes_per_token,
        tokens,
        _ranges(sums.tolist(), counts.tolist()),
    )


@torch.no_grad()
def any_order(
    model: Transformer, split: PackedTokens, block_size: int, *, rows: int = 0, batch_rows: int = 32,
    precision: Callable[[], AbstractContextManager],
) -> tuple[float, int]:  # fmt: skip
    """Exact any-order NLL of the first `rows` rows of a split (0: all), in nats per target token, and their number."""
    n_rows = min(rows, split.n_rows) if rows else split.n_rows
    device = model.embedding.weight.device
    nats, tokens = 0.0, 0
    for start in range(0, n_rows, batch_rows):
        batch = split.rows(list(range(start, min(start + batch_rows, n_rows)))).to(device)
        with precision():
            result = row_nll(
                model, batch.tokens, block_size, "enumerate", documents=batch.documents, is_target=batch.is_target
            )
        nats += float(result.nll.sum())
        tokens += int(result.tokens.sum())
    return nats / max(tokens, 1), tokens


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
    latest: list[Bound] = field(default_factory=list)

    def __call__(self) -> dict[str, Any]:
        self.latest = [
            bound(
                self.model, self.split, size, rows=self.config.rows, draws=self.config.draws,
                batch_rows=self.config.batch_rows, precision=self.precision,
            )
            for size in self.block_sizes
        ]  # fmt: skip
        n = len(self.latest)
        metrics: dict[str, Any] = {
            "val/nelbo": sum(b.nelbo for b in self.latest) / n,
            "val/bits_per_byte": sum(b.bits_per_byte for b in self.latest) / n,
            "val/perplexity": perplexity(sum(b.nelbo for b in self.latest) / n),
        }
        for b in self.latest:
            metrics[f"val/nelbo/b{b.block_size}"] = b.nelbo
            metrics[f"val/stderr/b{b.block_size}"] = b.stderr
            metrics[f"val/likelihood/b{b.block_size}"] = b.method
            for count, loss in b.by_count.items():
                metrics[f"val_by_count/b{b.block_size}/n{count:03d}"] = loss
        return metrics


@dataclass
class Sampler:
    """Prompts -> text and the figures of its generation. Prompts that can't be continued are left out (a warning)."""

    engine: Engine
    tokenizer: Tokenizer
    prompts: Sequence[str]
    max_new_tokens: int

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
        result = self.engine.generate(ids, min(self.max_new_tokens, room))
        n = sum(len(tokens) for tokens in result.tokens)
        texts = [
            f"--- {prompt!r}\n{prompt}{self.tokenizer.decode(new)}\n"
            for prompt, new in zip(self.prompts, result.tokens, strict=True)
        ]
        figures = {"gen/tokens_per_second": n / result.seconds, "gen/tokens_per_forward": n / max(result.nfe, 1)}
        return "\n".join(texts), figures
