"""Proposals: how many of a block's L tokens to mask.

One draw n ~ pi contributes m_n / pi(n) to the bound sum_n E[m_n], which is unbiased for every pi that is positive where
it must be. The variance is least for pi(n) ~ sqrt(E[m_n^2]), which `adaptive` learns while the model trains.

Shape legend: L target tokens of a block, B block size.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hybrid.checkpoints.module_state import DamagedState
from hybrid.options import at_least, option, shown


class Proposal(Protocol):
    """A proposal that also has `learn`, `state` and `restore` (see `Adaptive`) is shown every training step."""

    def probabilities(self, n_targets: int, block_size: int) -> Tensor:
        """pi: (L + 1,) float64, the probability of masking n = 0..L tokens; 0 at n = 0 unless L = 0."""
        ...


def normalised(weights: Tensor) -> Tensor:
    """Weights of n = 1..L -> probabilities of n = 0..L."""
    weights = weights.double()
    if not len(weights):
        return torch.ones(1, dtype=torch.float64)
    return torch.cat([torch.zeros(1, dtype=torch.float64), weights / weights.sum()])


@dataclass(frozen=True)
class Uniform:
    """Every number of masked tokens alike."""

    def probabilities(self, n_targets: int, block_size: int) -> Tensor:
        return normalised(torch.ones(n_targets))


@dataclass(frozen=True)
class Published(Uniform):
    """That with which `objective.weighting` was published; that of the ELBO is uniform."""


@dataclass(frozen=True)
class Power:
    """pi(n) ~ n^exponent: above 0 prefers many masked tokens, below 0 few."""

    exponent: float = option(0.5, "0 is uniform")

    def __post_init__(self) -> None:
        if not math.isfinite(self.exponent):
            raise ValueError(f"exponent: {self.exponent} is not a finite number")

    def probabilities(self, n_targets: int, block_size: int) -> Tensor:
        return normalised(torch.arange(1, n_targets + 1, dtype=torch.float64) ** self.exponent)


@dataclass(frozen=True)
class Explicit:
    """pi(n) ~ the n-th of the weights given, such as those that `hybrid.experiments.estimators` measures as the best.

    Their number must be the block size. A block with fewer targets uses the first of them.
    """

    weights: list[float] = option(MISSING, "positive weights of n = 1, 2, ..., block size")

    def __post_init__(self) -> None:
        if not self.weights or not all(0 < w < math.inf for w in self.weights):
            raise ValueError(f"weights: {self.weights} must be positive: a count that never comes would bias the loss")

    def probabilities(self, n_targets: int, block_size: int) -> Tensor:
        if len(self.weights) != block_size:
            raise ValueError(
                f"objective.proposal.weights: {len(self.weights)} weights, but the block size is {block_size}; give "
                "one for each number of masked tokens"
            )
        return normalised(torch.tensor(self.weights, dtype=torch.float64)[:n_targets])


@dataclass
class Adaptive:
    """pi(n) ~ root mean square of the loss at n masked tokens, learned as training goes; mixed with the uniform one.

    The proposal of a step depends on earlier steps alone, so the estimate stays unbiased. Losses are averaged with a
    weight that halves every `half_life` steps, in bins of n / L: each n is a bin of its own up to L = BINS.
    """

    half_life: float = option(100.0, "steps after which an observation counts half")
    uniform: float = option(0.1, "share of the uniform proposal: bounds every weight; above 0, at most 1")
    moments: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Block size -> (2, BINS + 1): weighted sum of squares, and of ones, per bin."""

    BINS = 32

    def __post_init__(self) -> None:
        at_least("half_life", self.half_life, 1)
        if not 0 < self.uniform <= 1:
            raise ValueError(f"uniform: {self.uniform} must be above 0 (every count must be possible) and at most 1")

    def bins(self, n: Tensor, n_targets: Tensor | int) -> Tensor:
        return -(-n * self.BINS // n_targets)

    def probabilities(self, n_targets: int, block_size: int) -> Tensor:
        flat = Uniform().probabilities(n_targets, block_size)
        if n_targets == 0 or block_size not in self.moments:
            return flat
        squares, weight = self.moments[block_size]
        seen = weight > 0
        centres = np.arange(self.BINS + 1)
        bins = self.bins(torch.arange(1, n_targets + 1), n_targets)
        known = (squares[seen] / weight[seen]).sqrt()
        rms = np.interp(bins.numpy(), centres[seen.numpy()], known.numpy())
        learned = normalised(torch.from_numpy(rms).clamp(min=1e-12))
        return (1 - self.uniform) * learned + self.uniform * flat

    def learn(self, block_size: int, n_targets: Tensor, n: Tensor, value: Tensor) -> None:
        """One step's blocks, flat: their numbers of targets (at least 1) and of masked tokens (at least 1), and losses.

        `value` is what the estimate would be with pi(n) = 1: m_n.
        """
        fresh = torch.zeros(2, self.BINS + 1, dtype=torch.float64)
        bins = self.bins(n, n_targets).cpu()
        fresh[0].index_add_(0, bins, value.double().cpu() ** 2)
        fresh[1].index_add_(0, bins, torch.ones(len(bins), dtype=torch.float64))
        before = self.moments.get(block_size, torch.zeros_like(fresh))
        self.moments[block_size] = before * 0.5 ** (1 / self.half_life) + fresh

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {f"moments.{size}": table for size, table in self.moments.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """From `state()`.

        Raises:
            ValueError: a table of another name, shape or type, or with a number that is negative or not finite.
        """
        for name, table in state.items():
            group, _, size = name.partition(".")
            if group != "moments" or not (size.isascii() and size.isdigit() and len(size) < 10):
                raise DamagedState(f"proposal: {shown(name)} is not the name of a table of moments")
            if table.shape != (2, self.BINS + 1) or table.dtype != torch.float64:
                raise DamagedState(
                    f"proposal: {name} is {list(table.shape)} {table.dtype}, not [2, {self.BINS + 1}] float64"
                )
            if not bool(table.isfinite().all() and (table >= 0).all()):
                raise DamagedState(f"proposal: {name} holds a number that is negative or not finite")
        self.moments.clear()
        self.moments.update({int(name.split(".")[1]): table for name, table in state.items()})


PROPOSALS: dict[str, Any] = {
    "published": Published,
    "uniform": Uniform,
    "power": Power,
    "explicit": Explicit,
    "adaptive": Adaptive,
}
