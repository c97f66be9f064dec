"""Noise schedules: alpha_t, the probability that a token is kept, not masked, at time t in [0, 1].

A schedule is alpha, which falls from 1 at t = 0 to 0 at t = 1, and its derivative; everything else follows from these
two. The time form of the bound weighs by them, `ancestral`, `p2` and `remdm` divide their grids by alpha.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hybrid.options import REMOVED, Removed, option


class Schedule(Protocol):
    """alpha_t = P(a token is kept at time t), for float64 times of any shape."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """alpha_t: 1 at t = 0, 0 at t = 1."""

    @abstractmethod
    def derivative(self, t: Tensor) -> Tensor:
        """d alpha_t / dt, at most 0."""

    def one_minus_alpha(self, t: Tensor) -> Tensor:
        """1 - alpha_t, the probability that a token is masked.

        Override it where the difference would cancel near t = 0: the time form divides by it.
        """
        return 1 - self.alpha(t)


@dataclass(frozen=True)
class Linear(Schedule):
    """alpha = 1 - t; the weight of a masked token is 1/t (MDLM, LLaDA)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def derivative(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def one_minus_alpha(self, t: Tensor) -> Tensor:
        return t


@dataclass(frozen=True)
class Polynomial(Schedule):
    """alpha = 1 - t^power; power 2 is 'square', 0.5 'sqrt' in BD3-LM."""

    power: float = option(2.0, "exponent; above 0")

    def __post_init__(self) -> None:
        if not 0 < self.power < math.inf:
            raise ValueError(f"power: {self.power} is not a finite number above 0")

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t**self.power

    def derivative(self, t: Tensor) -> Tensor:
        return -self.power * t ** (self.power - 1)

    def one_minus_alpha(self, t: Tensor) -> Tensor:
        return t**self.power


@dataclass(frozen=True)
class CosineMDLM(Schedule):
    """alpha = cos(pi t / 2) (MDLM, BD3-LM)."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(math.pi / 2 * t)

    def derivative(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * torch.sin(math.pi / 2 * t)

    def one_minus_alpha(self, t: Tensor) -> Tensor:
        return 2 * torch.sin(math.pi / 4 * t) ** 2


@dataclass(frozen=True)
class CosineMD4(Schedule):
    """alpha = 1 - sin(pi t / 2) (MD4). MaskGIT's mask ratio cos(pi u / 2) is this schedule with u = 1 - t."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - torch.sin(math.pi / 2 * t)

    def derivative(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * torch.cos(math.pi / 2 * t)

    def one_minus_alpha(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t)


@dataclass(frozen=True)
class Logarithmic(Schedule):
    """alpha = 1 - log(1 + t) / log 2 (BD3-LM)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - torch.log1p(t) / math.log(2)

    def derivative(self, t: Tensor) -> Tensor:
        return -1 / ((1 + t) * math.log(2))

    def one_minus_alpha(self, t: Tensor) -> Tensor:
        return torch.log1p(t) / math.log(2)


SCHEDULES: dict[str, Any] = {
    "linear": Linear,
    "polynomial": Polynomial,
    "cosine_mdlm": CosineMDLM,
    "cosine_md4": CosineMD4,
    "logarithmic": Logarithmic,
}

for _key in ("schedule", "kappa"):
    _why = "it is the schedule 'cosine_md4' by another name; write that"
    REMOVED[_key, "cosine_maskgit"] = Removed(_why, "cosine_md4")
