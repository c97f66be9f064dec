"""One optimizer step: batch, noise, loss, gradient, update.

Everything random is a function of (seed, step, row of the global batch), so a batch can be split over forwards or ranks
in any way.

Batch and noise are made on the host, and all that follows is handed to the device without waiting for it: whether the
step was finite is decided there, and its numbers are read when they are logged. So a GPU finds the next step ready when
it is done with this one. A proposal that learns is the exception: the next noise depends on the losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from hybrid import rng
from hybrid.data.batches import batch_rows, shard
from hybrid.data.dataset import PackedTokens
from hybrid.distributed import ALONE, Ranks, full
from hybrid.model import Transformer
from hybrid.objectives import Objective
from hybrid.objectives.noise import NoiseKeys
from hybrid.training.config import TrainerConfig
from hybrid.training.optim import EMA, OptimConfig, Optimizer, lr_factor
from hybrid.training.parallel import DataParallel


@dataclass(frozen=True, eq=False)
class StepResult:
    """One optimizer step. Its numbers stay on the device until one of them is read, which waits for it.

    Losses are in nats per target token of the global batch.
    """

    step: int
    numbers: Tensor  # (3,) float64: loss, that of its autoregressive part (0 where there is none), norm of the gradient
    has_ar: bool
    block_size: int
    rates: dict[str, float]  # learning rates by name

    @cached_property
    def _read(self) -> list[float]:
        return self.numbers.tolist()

    @property
    def loss(self) -> float:
        """Of the objective, without the autoregressive part."""
        return self._read[0]

    @property
    def ar_nll(self) -> float | None:
        """Of the autoregressive part, where there is one."""
        return self._read[1] if self.has_ar else None

    @property
    def grad_norm(self) -> float:
        return self._read[2]

    @property
    def is_finite(self) -> bool:
        """Whether it has changed anything."""
        return all(map(math.isfinite, self._read))


class Share(NamedTuple):
    """What one rank accumulated: losses per target token of the global batch, and what its blocks gave."""

    losses: Tensor  # (2,) float64: of the objective, and of its autoregressive part (0 where there is none)
    block_size: int
    blocks: list[tuple[Tensor, Tensor, Tensor]]  # `Objective.observed` of each forward, for a proposal that learns


@dataclass
class Stepper:
    """One optimizer step: batch, noise, loss, gradient, update. Knows its rank; keeps no state but the weights'.

    `parallel` computes the gradient; None: the model is this process's own.
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
    parallel: DataParallel | None = None

    def __call__(self, step: int) -> StepResult:
        share = self.accumulate(step)
        rates = self.optimizer.set_rate(lr_factor(step, self.trainer.steps, self.optim))
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.grad_clip or math.inf)
        numbers = torch.cat([self.ranks.sum(share.losses), full(norm).double()[None]])
        skip = (~numbers.isfinite().all()).float()  # the same on every rank, as the numbers are
        self.optimizer.step(skip)
        if self.ema is not None:
            self.ema.update(step, skip)
        self.optimizer.zero_grad()
        has_ar = self.objective.ar_weight > 0 and share.block_size > 1
        result = StepResult(step, numbers, has_ar, share.block_size, rates)
        if share.blocks and result.is_finite:
            self.objective.learn(share.block_size, list(chain(*self.ranks.gather(share.blocks))))
        return result

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
        parallel = self.parallel or DataParallel(self.model)
        for start in range(0, len(mine), micro_rows):
            batch = self.split.rows(mine[start : start + micro_rows])
            first = self.ranks.rank * len(mine) + start
            noise = NoiseKeys(self.seed, step + 1, torch.arange(first, first + len(batch.tokens)), first, n_rows)
            with parallel.summed(now=start + micro_rows >= len(mine)):
                with self.precision():
                    loss = parallel.loss(objective, batch, noise, block_size)
                    minimised = loss.total
                    if loss.autoregressive is not None:
                        minimised = minimised + objective.ar_weight * loss.autoregressive
                parallel.backward(minimised / n_targets)
            losses[0] += loss.total.detach() / n_targets
            if loss.autoregressive is not None:
                losses[1] += loss.autoregressive.detach() / n_targets
            if objective.learner is not None:
                blocks.append(objective.observed(loss, batch.is_target, block_size))
        return Share(losses, block_size, blocks)

    def block_size_of(self, step: int) -> int:
        """With a list of block sizes, one is drawn for each batch."""
        u = float(rng.uniform(self.seed, rng.DECIDE, step))
        return self.block_sizes[int(u * len(self.block_sizes))]

    def _count_targets(self, indices) -> int:
        """Target tokens of the global batch; every rank can count them, so nobody has to be asked."""
        if self.split.is_target is None:
            return len(indices) * self.split.seq_len
        return int(self.split.rows(indices).is_target.sum())
