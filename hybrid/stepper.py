"""One optimizer step: batch, noise, loss, gradient, update.

Everything random is a function of (seed, step, row of the global batch), so a batch can be split over forwards or ranks
in any way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from hybrid import counter
from hybrid.data import PackedTokens, batch_rows, shard
from hybrid.model import Transformer
from hybrid.noise import Keys
from hybrid.objective import Objective
from hybrid.optim import EMA, OptimConfig, Optimizer, lr_factor
from hybrid.parallel import Shared
from hybrid.ranks import ALONE, Ranks, whole

if TYPE_CHECKING:
    from hybrid.trainer import TrainerConfig


@dataclass(frozen=True)
class StepResult:
    """One optimizer step. Losses are in nats per target token of the global batch."""

    loss: float  # of the objective, without the autoregressive part
    ar_nll: float | None  # of the autoregressive part, where there is one
    grad_norm: float
    block_size: int
    rates: dict[str, float]  # learning rates by name
    is_finite: bool


class Share(NamedTuple):
    """What one rank accumulated: losses per target token of the global batch, and what its blocks gave."""

    losses: Tensor  # (2,) float64: of the objective, and of its autoregressive part (0 where there is none)
    block_size: int
    blocks: list[tuple[Tensor, Tensor, Tensor]]  # `Objective.observed` of each forward, for a proposal that learns


@dataclass
class Stepper:
    """One optimizer step: batch, noise, loss, gradient, update. Knows its rank; keeps no state but the weights'.

    `shared` computes the gradient; None: the model is this process's own.
    """

    model: Transformer
    optimizer: Optimizer
    ema: EMA | None
    split: PackedTokens
    objective: Objective
    block_sizes: Sequence[int]
    optim: OptimConfig
    trainer: TrainerConfig
    seed: int
    precision: Callable[[], AbstractContextManager]
    ranks: Ranks = ALONE
    shared: Shared | None = None

    def __call__(self, step: int) -> StepResult:
        share = self.accumulate(step)
        rates = self.optimizer.set_rate(lr_factor(step, self.trainer.steps, self.optim))
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.grad_clip or math.inf)
        grad_norm = float(whole(norm))
        loss, ar_nll = self.ranks.sum(share.losses).tolist()
        is_finite = all(map(math.isfinite, (loss, ar_nll, grad_norm)))  # the same on every rank, as all three are
        if is_finite:
            self.optimizer.step()
            if share.blocks:
                seen = self.ranks.gather([tuple(t.cpu() for t in block) for block in share.blocks])
                self.objective.learn(share.block_size, list(chain(*seen)))
            if self.ema is not None:
                self.ema.update(step)
        self.optimizer.zero_grad()
        has_ar = self.objective.ar_weight > 0 and share.block_size > 1
        return StepResult(loss, ar_nll if has_ar else None, grad_norm, share.block_size, rates, is_finite)

    def accumulate(self, step: int) -> Share:
        """Gradients of the loss of this rank's share of the global batch, which sum to the batch's over ranks."""
        trainer, seq_len, objective = self.trainer, self.split.seq_len, self.objective
        n_rows = trainer.batch_tokens // seq_len
        indices = batch_rows(self.split.n_rows, n_rows, self.seed, step)
        mine = shard(indices, self.ranks.rank, self.ranks.world)
        micro_rows = min((trainer.micro_batch_tokens or trainer.batch_tokens) // seq_len, len(mine))
        block_size = self.block_size_of(step)
        n_targets = max(self._count_targets(indices), 1)
        losses = torch.zeros(2, dtype=torch.float64, device=self.model.embedding.weight.device)
        blocks = []
        shared = self.shared or Shared(self.model)
        for start in range(0, len(mine), micro_rows):
            batch = self.split.rows(mine[start : start + micro_rows])
            first = self.ranks.rank * len(mine) + start
            keys = Keys(self.seed, step + 1, torch.arange(first, first + len(batch.tokens)), first, n_rows)
            with shared.summed(now=start + micro_rows >= len(mine)):
                with self.precision():
                    loss = shared.loss(objective, batch, keys, block_size)
                    minimised = loss.total
                    if loss.autoregressive is not None:
                        minimised = minimised + objective.ar_weight * loss.autoregressive
                shared.backward(minimised / n_targets)
            losses[0] += loss.total.detach() / n_targets
            if loss.autoregressive is not None:
                losses[1] += loss.autoregressive.detach() / n_targets
            if objective.learner is not None:
                blocks.append(objective.observed(loss, batch.is_target, block_size))
        return Share(losses, block_size, blocks)

    def block_size_of(self, step: int) -> int:
        """With a list of block sizes, one is drawn for each batch."""
        u = float(counter.uniform(self.seed, counter.DECIDE, step))
        return self.block_sizes[int(u * len(self.block_sizes))]

    def _count_targets(self, indices) -> int:
        """Target tokens of the global batch; every rank can count them, so nobody has to be asked."""
        if self.split.is_target is None:
            return len(indices) * self.split.seq_len
        return int(self.split.rows(indices).is_target.sum())
