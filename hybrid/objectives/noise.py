"""How many tokens to mask, and which.

A schedule is alpha(t), the fraction of tokens still visible at time t in [0, 1], and its derivative; everything else
follows from these two. Counts and positions are drawn from counter-based uniforms, stratified over the blocks of the
global batch.

Shape legend: b rows, D noise draws, N text length, g blocks, B block size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid import rng
from hybrid.options import option


class Schedule(Protocol):
    def masked(self, t: Tensor) -> Tensor:
        """1 - alpha(t): probability that a token is masked at time t; 0 at t = 0, 1 at t = 1."""
        ...

    def rate(self, t: Tensor) -> Tensor:
        """-alpha'(t), the derivative of `masked`."""
        ...


@dataclass(frozen=True)
class Linear:
    """1 - alpha = t; the weight of a masked token is 1/t (MDLM, LLaDA)."""

    def masked(self, t: Tensor) -> Tensor:
        return t

    def rate(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class Polynomial:
    """1 - alpha = t^power; power 2 is 'square', 0.5 'sqrt' in BD3-LM."""

    power: float = option(2.0, "exponent; above 0")

    def __post_init__(self) -> None:
        if not 0 < self.power < math.inf:
            raise ValueError(f"power: {self.power} is not a finite number above 0")

    def masked(self, t: Tensor) -> Tensor:
        return t**self.power

    def rate(self, t: Tensor) -> Tensor:
        return self.power * t ** (self.power - 1)


@dataclass(frozen=True)
class CosineMDLM:
    """1 - alpha = 1 - cos(pi t / 2) (MDLM, BD3-LM), written 2 sin^2(pi t / 4): the difference would cancel near 0."""

    def masked(self, t: Tensor) -> Tensor:
        return 2 * torch.sin(math.pi / 4 * t) ** 2

    def rate(self, t: Tensor) -> Tensor:
        return math.pi / 2 * torch.sin(math.pi / 2 * t)


@dataclass(frozen=True)
class CosineMD4:
    """1 - alpha = sin(pi t / 2) (MD4). MaskGIT's mask ratio cos(pi u / 2) is this process with u = 1 - t."""

    def masked(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t)

    def rate(self, t: Tensor) -> Tensor:
        return math.pi / 2 * torch.cos(math.pi / 2 * t)


@dataclass(frozen=True)
class Logarithmic:
    """1 - alpha = log(1 + t) / log 2 (BD3-LM)."""

    def masked(self, t: Tensor) -> Tensor:
        return torch.log1p(t) / math.log(2)

    def rate(self, t: Tensor) -> Tensor:
        return 1 / ((1 + t) * math.log(2))


SCHEDULES: dict[str, Any] = {
    "linear": Linear,
    "polynomial": Polynomial,
    "cosine_mdlm": CosineMDLM,
    "cosine_md4": CosineMD4,
    "cosine_maskgit": CosineMD4,  # named apart because papers do; see its docstring
    "logarithmic": Logarithmic,
}


@dataclass(frozen=True)
class Keys:
    """What the noise of a batch is a function of.

    `row` (b,) int64 numbers or hashes the rows; (first, total) say where these rows stand in the global batch, over
    which the counts are stratified, and `step` names that batch.
    """

    seed: int
    step: int
    row: Tensor
    first: int
    total: int

    @classmethod
    def of_rows(cls, seed: int, rows: Tensor) -> Keys:
        """Rows each on its own, as in evaluation: nothing depends on the batch."""
        return cls(seed, 0, rows, 0, 1)


def block_view(rows: Tensor, block_size: int, fill: float | bool) -> Tensor:
    """(..., N) -> (..., g, B), the last block filled up with `fill`."""
    short = -rows.shape[-1] % block_size
    return F.pad(rows, (0, short), value=fill).unflatten(-1, (-1, block_size))


def block_uniforms(keys: Keys, n_blocks: int, draws: int, stratified: bool) -> Tensor:
    """(b, D, g) float64 uniforms in [0, 1), one per block.

    Stratified: the blocks of all rows and draws of the global batch take the strata of [0, 1), each once, in an order
    permuted by (seed, step): the batch covers the range evenly, and no stratum is tied to a position. With
    `keys.total == 1` each row and draw stratifies over its own blocks, so that draws are independent replicates.
    """
    device, b = keys.row.device, len(keys.row)
    row, draw = keys.row[:, None, None], torch.arange(draws, device=device)[:, None]
    block = torch.arange(n_blocks, device=device)
    jitter = rng.uniform(keys.seed, rng.COUNT, row, draw, block, keys.step)
    if not stratified:
        return jitter
    if keys.total == 1:
        stratum = rng.uniform(keys.seed, rng.STRATUM, row, draw, block, keys.step).argsort(-1).argsort(-1)
        return (stratum + jitter) / n_blocks
    cells = torch.arange(keys.total * draws * n_blocks, device=device)
    order = rng.uniform(keys.seed, rng.STRATUM, cells, keys.step).argsort().argsort()
    mine = order.view(keys.total, draws, n_blocks)[keys.first : keys.first + b]
    return (mine + jitter) / len(cells)


def position_uniforms(keys: Keys, length: int, draws: int) -> Tensor:
    """(b, D, N) float64 uniforms in [0, 1), one per token; their order decides which tokens are masked."""
    device = keys.row.device
    draw, position = torch.arange(draws, device=device)[:, None], torch.arange(length, device=device)
    return rng.uniform(keys.seed, rng.ORDER, keys.row[:, None, None], draw, position, keys.step)


def target_ranks(keys: Keys, is_target: Tensor, block_size: int, draws: int) -> Tensor:
    """(b, D, g, B): a uniformly random rank 0..L-1 among the L target tokens of each block; the others rank behind."""
    scores = position_uniforms(keys, is_target.shape[1], draws)
    scores = scores.masked_fill(~is_target[:, None], 2.0)
    return block_view(scores, block_size, 3.0).argsort(-1).argsort(-1)
