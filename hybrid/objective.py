"""The per-block masked ELBO: its estimators, and the loss of a batch.

With m_n the mean cross-entropy over the masked tokens when n of a block's L target tokens are masked at random,

    -log p(x^b | x^<b)  <=  sum_{n=1..L} E[m_n]

(Zheng et al. 2409.02908, prop. 3.1). An estimator draws which tokens to mask and gives each masked token a weight, such
that the expected weighted sum of cross-entropies is that bound. Add one to `OBJECTIVES` and it is a choice of
`objective.estimator`, documented by `--help` and tested for unbiasedness.

Shape legend: b rows, D noise draws, N text length, g blocks, B block size, m masked tokens.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid.model import Transformer
from hybrid.noise import SCHEDULES, Keys, Schedule, block_uniforms, block_view, position_uniforms, target_ranks
from hybrid.options import build, option
from hybrid.streams import two_stream_hidden


@dataclass
class ObjectiveConfig:
    block_size: Any = option(8, "an integer, a list of them (one is drawn per batch), or seq_len")
    estimator: Any = option("count", "how the ELBO is estimated: an entry of OBJECTIVES")
    schedule: Any = option("linear", "time form only: an entry of SCHEDULES")
    stratified: bool = option(True, "spread counts (or times) evenly over the global batch")
    draws: int = option(1, "noise draws that share one clean pass")


@dataclass(frozen=True)
class Masking:
    """Which tokens are masked, (b, D, N) booleans, and the weight (b, D, N) of each one's cross-entropy."""

    masked: Tensor
    weight: Tensor

    @classmethod
    def of_blocks(cls, masked: Tensor, weight: Tensor, length: int) -> Masking:
        """From (b, D, g, B) booleans and weights that broadcast against them; `length` is N."""
        flat = masked.flatten(2)[..., :length], weight.expand(masked.shape).flatten(2)[..., :length].double()
        return cls(*flat)


class Estimator(Protocol):
    def draw(self, keys: Keys, is_target: Tensor, block_size: int, draws: int, stratified: bool) -> Masking:
        """Noise for rows whose target tokens are True in `is_target` (b, N); only those are ever masked.

        Where no noise is left, one draw stands for all.
        """
        ...


@dataclass(frozen=True)
class Count:
    """Count form: n ~ U{1..L} tokens of each block are masked; weight L/n each, so that the block gives L m_n.

    At L = 1 it is the exact autoregressive NLL, without noise. The number of masked tokens is all that the model needs
    to know, and it can count: no time variable.
    """

    def draw(self, keys: Keys, is_target: Tensor, block_size: int, draws: int, stratified: bool) -> Masking:
        draws = 1 if block_size == 1 else draws  # all would be the same
        rank = target_ranks(keys, is_target, block_size, draws)  # (b, D, g, B)
        targets = block_view(is_target, block_size, False).sum(-1)[:, None]  # (b, 1, g): L
        u = block_uniforms(keys, rank.shape[2], draws, stratified)
        n = torch.minimum((u * targets).long() + 1, targets)  # 1..L; 0 where the block has no target
        weight = targets / n.clamp(min=1)
        return Masking.of_blocks(rank < n[..., None], weight[..., None], is_target.shape[1])


@dataclass(frozen=True)
class Time:
    """Time form: t ~ U[0, 1] per block, each token masked with probability 1 - alpha(t), weight -alpha'/(1 - alpha).

    The number of masked tokens is binomial given t, and may be 0. Same expectation as the count form for every
    schedule, more variance.
    """

    schedule: Any = option("linear", "an entry of SCHEDULES")

    def draw(self, keys: Keys, is_target: Tensor, block_size: int, draws: int, stratified: bool) -> Masking:
        schedule: Schedule = build(SCHEDULES, self.schedule, "objective.schedule")
        length = is_target.shape[1]
        t = 1 - block_uniforms(keys, -(-length // block_size), draws, stratified)  # (0, 1]: no division by 0
        coin = position_uniforms(keys, length, draws)
        probability = schedule.masked(t)[..., None]
        masked = block_view(coin, block_size, 2.0) < probability
        weight = schedule.rate(t)[..., None] / probability.clamp(min=1e-300)
        targets = block_view(is_target, block_size, False)[:, None]
        return Masking.of_blocks(masked & targets, weight, length)


OBJECTIVES: dict[str, Any] = {"count": Count, "time": Time}


def build_estimator(config: ObjectiveConfig) -> Estimator:
    """The estimator of a configuration; it is handed those of the group's keys that it has fields for."""
    spec = {"name": config.estimator} if isinstance(config.estimator, str) else config.estimator
    entry = OBJECTIVES.get(spec.get("name", "")) if isinstance(spec, dict) else None
    if entry is not None and "schedule" in {f.name for f in dataclasses.fields(entry)} and "schedule" not in spec:
        spec = {**spec, "schedule": config.schedule}
    return build(OBJECTIVES, spec, "objective.estimator")


@dataclass(frozen=True)
class Loss:
    """Cross-entropies of the masked tokens of a batch, in the order of `masked.nonzero()`.

    `total` is the sum of weighted cross-entropies, averaged over draws: nats of the whole batch. Divided by the number
    of target tokens of the *global* batch it is the loss of this batch's share, whatever the accumulation or the ranks.
    """

    total: Tensor  # () with a gradient
    cross_entropy: Tensor  # (m,) float32 or float64, detached
    masking: Masking

    def by_count(self, block_size: int) -> tuple[Tensor, Tensor]:
        """Sum of m_n, and number of blocks, for n = 0..B masked tokens in the block: two (B + 1,) float64."""
        masked = self.masking.masked
        losses = torch.zeros(masked.shape, dtype=torch.float64, device=masked.device)
        losses[masked] = self.cross_entropy.double()
        n = block_view(masked, block_size, False).sum(-1).flatten()
        mean = block_view(losses, block_size, 0.0).sum(-1).flatten() / n.clamp(min=1)
        sums = torch.zeros(block_size + 1, dtype=torch.float64, device=masked.device).index_add_(0, n, mean)
        return sums, torch.bincount(n, minlength=block_size + 1).double()


def masked_loss(
    model: Transformer, tokens: Tensor, masking: Masking, block_size: int, documents: Tensor | None = None
) -> Loss:
    """Run both streams and weigh the cross-entropies of the masked tokens (b, N)."""
    hidden = two_stream_hidden(model, tokens, masking.masked, block_size, documents)
    row, _, position = masking.masked.nonzero(as_tuple=True)
    losses = cross_entropies(model, hidden, tokens[row, position])
    weights = masking.weight[masking.masked].to(losses.dtype)
    return Loss((losses * weights).sum() / masking.masked.shape[1], losses.detach(), masking)


def cross_entropies(model: Transformer, hidden: Tensor, targets: Tensor) -> Tensor:
    """(m, dim), (m,) -> (m,) nats, at least in float32."""
    logits = model.head(hidden)
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none")
