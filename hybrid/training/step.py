"""One optimizer step: batch, noise, loss, gradient, update.

Everything random is a function of (seed, step, row of the global batch), so a batch can be split over forwards or ranks
in any way.

Batch and noise are made on the host, and all that follows is handed to the device without waiting for it: whether the
step was finite is decided there, and its numbers are read when they are logged. So a GPU finds the next step ready when
it is done with this one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from hybrid import rng
from hybrid.data.batches import PackedTokens, batch_rows, shard
from hybrid.distributed import ALONE, Ranks, full
from hybrid.model import Transformer
from hybrid.objectives import Objective
from hybrid.objectives.noise import NoiseKeys
from hybrid.objectives.objective import checked
from hybrid.training.config import TrainerConfig
from hybrid.training.optim import EMA, OptimConfig, Optimizer, lr_factor
from hybrid.training.parallel import DataParallel


@dataclass(frozen=True, eq=False)
class StepResult:
    """One optimizer step. Its numbers stay on the device until one of them is read, which waits for it.

    Losses are in nats per target token of the global batch.
    """

    step: int
    numbers: Tensor  # (k + 1,) float64: what the objective logs, and the norm of the gradient
    names: tuple[str, ...]  # (k,) of what the objective logs: `Loss.logged`
    block_size: int
    rates: dict[str, float]  # learning rates by name

    @cached_property
    def _read(self) -> list[float]:
        return self.numbers.tolist()

    @property
    def losses(self) -> dict[str, float]:
        """Name -> value of what the objective logs."""
        return dict(zip(self.names, self._read, strict=False))

    @property
    def loss(self) -> float:
        """The first of `losses`."""
        return self._read[0]

    @property
    def grad_norm(self) -> float:
        return self._read[-1]

    @property
    def is_finite(self) -> bool:
        """Whether it has changed anything."""
        return all(map(math.isfinite, self._read))


class Share(NamedTuple):
    """What one rank accumulated of the losses that the objective logs, per target token of the global batch."""

    losses: Tensor  # (k,) float64
    names: tuple[str, ...]  # (k,)
    block_size: int


@dataclass
class Stepper:
    """Makes an optimizer step: batch, noise, loss, gradient, update. It keeps no state but the weights'.

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
        return StepResult(step, numbers, share.names, share.block_size, rates)

    def accumulate(self, step: int) -> Share:
        """Add up the gradients of this rank's share of the global batch, which sum to the batch's over ranks."""
        trainer, seq_len, objective = self.trainer, self.split.seq_len, self.objective
        n_rows = trainer.batch_tokens // seq_len
        indices = batch_rows(self.split.n_rows, n_rows, self.seed, step)
        mine = shard(indices, self.ranks.rank, self.ranks.world)
        micro_rows = min((trainer.micro_batch_tokens or trainer.batch_tokens) // seq_len, len(mine))
        block_size = self.block_size_of(step)
        n_targets = max(self._count_targets(indices), 1)
        nothing = torch.zeros((), dtype=torch.float64, device=self.model.embedding.weight.device)
        losses: dict[str, Tensor] = {}
        parallel = self.parallel or DataParallel(self.model)
        for start in range(0, len(mine), micro_rows):
            batch = self.split.rows(mine[start : start + micro_rows])
            first = self.ranks.rank * len(mine) + start
            noise = NoiseKeys(self.seed, step + 1, torch.arange(first, first + len(batch.tokens)), first, n_rows)
            with parallel.summed(now=start + micro_rows >= len(mine)):
                with self.precision():
                    loss = checked(parallel.loss(objective, batch, noise, block_size), objective)
                parallel.backward(loss.total / n_targets)
            for name, value in (loss.logged or {"loss": loss.total}).items():
                losses[name] = losses.get(name, nothing) + value.detach() / n_targets
        return Share(torch.stack(list(losses.values())), tuple(losses), block_size)

    def block_size_of(self, step: int) -> int:
        """Draw the block size of a batch, where there is a list of them."""
        u = float(rng.uniform(self.seed, rng.DECIDE, step))
        return self.block_sizes[int(u * len(self.block_sizes))]

    def _count_targets(self, indices) -> int:
        """Count the target tokens of the global batch; every rank can, so nobody has to be asked."""
        if self.split.is_target is None:
            return len(indices) * self.split.seq_len
        return int(self.split.rows(indices).is_target.sum())
