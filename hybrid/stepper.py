"""One optimizer step: batch, noise, loss, gradient, update.

Everything random is a function of (seed, step, row of the global batch), so a batch can be split over forwards or ranks
in any way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from hybrid import counter
from hybrid.data import PackedTokens, batch_rows, shard
from hybrid.model import Transformer
from hybrid.noise import Keys
from hybrid.objective import Objective
from hybrid.optim import EMA, OptimConfig, Optimizer, lr_factor

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

    loss: float
    ar_nll: float | None
    block_size: int
    blocks: list[tuple[Tensor, Tensor, Tensor]]  # `Objective.observed` of each forward, for a proposal that learns


@dataclass
class Stepper:
    """One optimizer step: batch, noise, loss, gradient, update. Knows its rank; keeps no state but the weights'."""

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
    rank: int = 0
    world: int = 1

    def __call__(self, step: int) -> StepResult:
        share = self.accumulate(step)
        rates = self.optimizer.set_rate(lr_factor(step, self.trainer.steps, self.optim))
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.grad_clip or math.inf)
        grad_norm = float(norm)
        is_finite = math.isfinite(share.loss) and math.isfinite(share.ar_nll or 0.0) and math.isfinite(grad_norm)
        if is_finite:
            self.optimizer.step()
            self.objective.learn(share.block_size, share.blocks)
            if self.ema is not None:
                self.ema.update(step)
        self.optimizer.zero_grad()
        return StepResult(share.loss, share.ar_nll, grad_norm, share.block_size, rates, is_finite)

    def accumulate(self, step: int) -> Share:
        """Gradients of the loss of this rank's share of the global batch, which sum to the batch's over ranks."""
        trainer, seq_len, objective = self.trainer, self.split.seq_len, self.objective
        n_rows = trainer.batch_tokens // seq_len
        indices = batch_rows(self.split.n_rows, n_rows, self.seed, step)
        mine = shard(indices, self.rank, self.world)
        micro_rows = min((trainer.micro_batch_tokens or trainer.batch_tokens) // seq_len, len(mine))
        block_size = self.block_size_of(step)
        n_targets = max(self._count_targets(indices), 1)
        device = self.model.embedding.weight.device
        total, ar_total = torch.zeros(2, dtype=torch.float64, device=device)
        blocks = []
        for start in range(0, len(mine), micro_rows):
            batch = self.split.rows(mine[start : start + micro_rows]).to(device)
            first = self.rank * len(mine) + start
            row = torch.arange(first, first + len(batch.tokens), device=device)
            keys = Keys(self.seed, step + 1, row, first, n_rows)
            with self.precision():
                loss = objective.loss(self.model, batch, keys, block_size)
                minimised = loss.total
                if loss.autoregressive is not None:
                    minimised = minimised + objective.ar_weight * loss.autoregressive
            (minimised / n_targets).backward()
            total += loss.total.detach() / n_targets
            if loss.autoregressive is not None:
                ar_total += loss.autoregressive.detach() / n_targets
            if objective.learner is not None:
                blocks.append(objective.observed(loss, batch.is_target, block_size))
        has_ar = objective.ar_weight > 0 and block_size > 1
        return Share(float(total), float(ar_total) if has_ar else None, block_size, blocks)

    def block_size_of(self, step: int) -> int:
        """With a list of block sizes, one is drawn for each batch."""
        u = float(counter.uniform(self.seed, counter.DECIDE, step))
        return self.block_sizes[int(u * len(self.block_sizes))]

    def _count_targets(self, indices) -> int:
        """Target tokens of the global batch; every rank can count them, so nobody has to be asked."""
        if self.split.is_target is None:
            return len(indices) * self.split.seq_len
        return int(self.split.rows(indices).is_target.sum())
