"""Proposals: distributions pi(n) of how many of a block's L tokens are masked.

One draw n ~ pi contributes m_n / pi(n) to the bound sum_n E[m_n], which is unbiased for every pi that is positive where
it must be. The variance is least for pi(n) ~ sqrt(E[m_n^2]).

Shape legend: L target tokens of a block, B block size.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hybrid.options import REMOVED, Removed, option


class Proposal(Protocol):
    """pi(n), the probability to mask n of a block's target tokens."""

    def probabilities(self, n_targets: int, block_size: int) -> Tensor:
        """Return pi(0..L), (L + 1,) float64, of sum 1; 0 at n = 0 unless L = 0."""
        ...


def normalised(weights: Tensor) -> Tensor:
    """Turn weights of n = 1..L into probabilities of n = 0..L."""
    weights = weights.double()
    if not len(weights):
        return torch.ones(1, dtype=torch.float64)
    return torch.cat([torch.zeros(1, dtype=torch.float64), weights / weights.sum()])


@dataclass(frozen=True)
class Uniform:
    """pi(n) = 1 / L: every number of masked tokens alike."""

    def probabilities(self, n_targets: int, block_size: int) -> Tensor:
        return normalised(torch.ones(n_targets))


@dataclass(frozen=True)
class Published(Uniform):
    """pi(n) with which `objective.weighting` was published; that of the ELBO is uniform."""


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


PROPOSALS: dict[str, Any] = {
    "published": Published,
    "uniform": Uniform,
    "power": Power,
    "explicit": Explicit,
}

REMOVED["proposal", "adaptive"] = Removed(
    "it measured worse than the uniform one (docs/answers.md), and made every step wait for its losses; take "
    "'uniform', or 'explicit' with the weights that hybrid.experiments.estimators measures"
)
