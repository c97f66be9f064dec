"""Rotary positions (Su et al. 2021): frequencies, how checkpoints stretch them, and the angles of rows.

Frequency i of a head of width d is theta^(-2i/d), in radians per position. To add a scaling: a frozen dataclass with
`frequencies`, whose fields are its options, and a line in `ROPE_SCALINGS`.

Shape legend: b batch, r rows, d head dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hybrid.device import send
from hybrid.options import at_least, build, option


class RopeScaling(Protocol):
    def frequencies(self, plain: Tensor, theta: float) -> tuple[Tensor, float]:
        """(d/2,) float64 frequencies -> those to use, and a factor of queries and keys."""
        ...


@dataclass(frozen=True)
class Llama3:
    """Llama 3.1: wavelengths that the old context holds often stay, long ones are stretched by `factor`, those between
    are interpolated."""

    factor: float = option(8.0, "how much longer texts become")
    low_freq_factor: float = option(1.0, "wavelengths above original_length over this are stretched")
    high_freq_factor: float = option(4.0, "wavelengths below original_length over this stay")
    original_length: int = option(8192, "tokens of the texts before stretching")

    def __post_init__(self) -> None:
        at_least("factor", self.factor, 1)
        at_least("original_length", self.original_length, 1)
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor: {self.low_freq_factor} must be positive and below high_freq_factor "
                f"{self.high_freq_factor}"
            )

    def frequencies(self, plain: Tensor, theta: float) -> tuple[Tensor, float]:
        turns = self.original_length * plain / (2 * math.pi)  # in the old context
        share = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        share = share.clamp(0, 1)  # 0: stretched, 1: as it was
        return plain * (share + (1 - share) / self.factor), 1.0


@dataclass(frozen=True)
class Yarn:
    """YaRN (Peng et al. 2309.00071): a ramp over the frequencies between those that turn `beta_fast` and `beta_slow`
    times in the old context, which stay and are stretched; queries and keys grow by a factor."""

    factor: float = option(4.0, "how much longer texts become")
    original_length: int = option(4096, "tokens of the texts before stretching")
    beta_fast: float = option(32.0, "frequencies of more turns stay")
    beta_slow: float = option(1.0, "frequencies of fewer turns are stretched whole")
    attention_factor: float | None = option(None, "of queries and keys; null: 0.1 ln(factor) + 1")

    def __post_init__(self) -> None:
        at_least("factor", self.factor, 1)
        at_least("original_length", self.original_length, 1)
        if not 0 < self.beta_slow < self.beta_fast:
            raise ValueError(f"beta_slow: {self.beta_slow} must be positive and below beta_fast {self.beta_fast}")
        if self.attention_factor is not None and not self.attention_factor > 0:
            raise ValueError(f"attention_factor: {self.attention_factor} must be positive, or null")

    def frequencies(self, plain: Tensor, theta: float) -> tuple[Tensor, float]:
        half = len(plain)

        def index(turns: float) -> float:
            """d/2 ln(N / (2 pi turns)) / ln(theta): find which frequency turns so often in the old context N."""
            return half * math.log(self.original_length / (turns * 2 * math.pi)) / math.log(theta)

        low = max(math.floor(index(self.beta_fast)), 0)
        high = min(math.ceil(index(self.beta_slow)), 2 * half - 1)
        ramp = (torch.arange(half, dtype=plain.dtype) - low) / max(high - low, 0.001)
        stretched = ramp.clamp(0, 1).to(plain.device)
        factor = 0.1 * math.log(self.factor) + 1 if self.attention_factor is None else self.attention_factor
        return plain * (1 - stretched + stretched / self.factor), factor


ROPE_SCALINGS: dict[str, Any] = {"llama3": Llama3, "yarn": Yarn}


class Rope:
    """The angles of positions, from a table that grows as it is needed."""

    def __init__(self, head_dim: int, theta: float, scaling: Any = None):
        plain = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim)
        self.frequencies, self.factor = plain, 1.0
        if scaling is not None:
            self.frequencies, self.factor = build(ROPE_SCALINGS, scaling, "rope_scaling").frequencies(plain, theta)
        self._tables: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def angles(
        self, positions: Tensor | slice, end: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """(cos, cos) and (-sin, sin) for `kernels.rotate`, (1 or b, r, 1, d) each.

        Args:
            positions: (1 or b, r), or the same run of positions for all; below `end`.
        """
        cos, sin = self.table(end, device, dtype)
        if isinstance(positions, slice):
            return cos[None, positions], sin[None, positions]
        return cos[positions], sin[positions]

    def table(self, end: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """(2, at least `end`, 1, d): the same tensor until a longer one is asked for."""
        table = self._tables.get((device, dtype))
        if table is None or table.shape[1] < end:
            table = self._tables[device, dtype] = send(self._table(end).to(dtype), device)
        return table

    def _table(self, end: int) -> Tensor:
        """(2, end, 1, d) float64"""
        angles = torch.arange(end, dtype=torch.float64, device="cpu")[:, None, None] * self.frequencies
        cos, sin = angles.cos() * self.factor, angles.sin() * self.factor
        return torch.stack([torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)])
