"""Evaluate the bound on fixed validation rows, and write samples.

The noise is fixed: it is a function of the row and the draw, so curves compare, between steps and between runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from hybrid.data.batches import PackedTokens
from hybrid.data.tokenizers import Tokenizer
from hybrid.decoding.engine import Engine, generate_shared
from hybrid.distributed import ALONE, Ranks
from hybrid.likelihoods.rows import SplitLikelihood, bound, perplexity
from hybrid.model import Transformer
from hybrid.options import option
from hybrid.text.continuation import continuation

log = logging.getLogger(__name__)


@dataclass
class EvalConfig:
    rows: int = option(64, "validation rows used during training, the first ones (0: all)")
    draws: int = option(4, "noise draws per row; the standard error comes from them")
    batch_rows: int = option(32, "rows per forward; the result does not depend on it")
    block_sizes: Any = option(None, "block sizes evaluated: a list, or null for those that are trained")
    sample_tokens: int = option(256, "new tokens of each sample")
    sample_prompts: Any = option(["", "The "], "prompts of the samples")


@dataclass
class Validator:
    """Evaluates the bound at several block sizes -> metrics; `latest` holds the bounds of the last call.

    `heed` is called before each batch: what it raises ends the call.
    """

    model: Transformer
    split: PackedTokens
    block_sizes: Sequence[int]
    config: EvalConfig
    precision: Callable[[], AbstractContextManager]
    ranks: Ranks = ALONE
    heed: Callable[[], None] | None = None
    latest: list[SplitLikelihood] = field(default_factory=list)

    def __call__(self) -> dict[str, Any]:
        self.latest = [
            bound(
                self.model, self.split, size, rows=self.config.rows, draws=self.config.draws,
                batch_rows=self.config.batch_rows, precision=self.precision, ranks=self.ranks,
                heed=self.heed,
            )
            for size in self.block_sizes
        ]  # fmt: skip
        n = len(self.latest)
        metrics: dict[str, Any] = {
            "val/nelbo": sum(b.nats_per_token for b in self.latest) / n,
            "val/perplexity": perplexity(sum(b.nats_per_token for b in self.latest) / n),
        }
        bits = self.split.bits_per_byte(metrics["val/nelbo"])
        if bits is not None:
            metrics["val/bits_per_byte"] = bits
        for b in self.latest:
            metrics[f"val/nelbo/b{b.block_size}"] = b.nats_per_token
            metrics[f"val/stderr/b{b.block_size}"] = b.stderr
            metrics[f"val/likelihood/b{b.block_size}"] = b.likelihood
            for count, loss in b.by_count.items():
                metrics[f"val_by_count/b{b.block_size}/n{count:03d}"] = loss
        return metrics


@dataclass
class SampleWriter:
    """Continues prompts -> their text, and the speed of its generation as metrics; each rank continues its share.

    Prompts that can't be continued are left out, with a warning.
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
        ends = self.engine.model.end_token_ids
        ids = [self.tokenizer.encode(prompt) for prompt in self.prompts]
        room = self.engine.seq_len - max(len(prompt) for prompt in ids)
        result = generate_shared(self.engine, ids, min(self.max_new_tokens, room), self.ranks)
        n = sum(len(tokens) for tokens in result.tokens)
        texts = [
            f"--- {prompt!r}\n{prompt}{continuation(self.tokenizer, before, new, ends=ends)}\n"
            for prompt, before, new in zip(self.prompts, ids, result.tokens, strict=True)
        ]
        per_text = n / len(ids)  # a forward writes all texts at once: one token a step is one token per forward
        metrics = {"gen/tokens_per_second": n / result.seconds, "gen/tokens_per_forward": per_text / max(result.nfe, 1)}
        return "\n".join(texts), metrics
