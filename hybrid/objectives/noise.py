"""Noise of a batch: counter-based uniforms for its blocks and tokens, stratified over the global batch.

Shape legend: b rows, D noise draws, N text length, g blocks, B block size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid import rng
from hybrid.model.config import ModelConfig


@dataclass(frozen=True)
class NoiseKeys:
    """Key the noise of a batch: it is a function of these and of nothing else.

    `row` (b,) int64 numbers or hashes the rows; (first, total) say where these rows stand in the global batch, over
    which the counts are stratified, and `step` names that batch.
    """

    seed: int
    step: int
    row: Tensor
    first: int
    total: int

    @classmethod
    def of_rows(cls, seed: int, rows: Tensor) -> NoiseKeys:
        """Key each row on its own, as in evaluation: nothing depends on the batch."""
        return cls(seed, 0, rows, 0, 1)


def block_view(rows: Tensor, block_size: int, fill: float | bool) -> Tensor:
    """View rows (..., N) as blocks (..., g, B), the last one filled up with `fill`."""
    short = -rows.shape[-1] % block_size
    return F.pad(rows, (0, short), value=fill).unflatten(-1, (-1, block_size))


def latent_noise(
    noise: NoiseKeys, model: ModelConfig, length: int, block_size: int, draws: int, first: int = 0
) -> Tensor:
    """Draw standard normals for each MASK, (b, D, N, model.latent) float64: the same through a block, or at each
    position its own (`model.latent_per`), whatever is masked. The draws are numbers `first`, `first` + 1, ..."""
    device = noise.row.device
    size = block_size if model.latent_per == "block" else 1
    row, draw = noise.row[:, None, None, None], torch.arange(first, first + draws, device=device)[:, None, None]
    place, number = torch.arange(0, length, size, device=device)[:, None], torch.arange(model.latent, device=device)
    z = rng.normal(noise.seed, rng.LATENT, row, draw, place, noise.step, number)
    return z.repeat_interleave(size, dim=2)[:, :, :length]


def ranks(values: Tensor) -> Tensor:
    """Rank values along the last axis, 0, 1, ... by increasing value: the inverse permutation of their argsort."""
    order = values.argsort(-1)
    places = torch.arange(order.shape[-1], device=order.device)
    return torch.empty_like(order).scatter_(-1, order, places.expand_as(order))


@lru_cache(maxsize=2)  # of the step that is made, for all of its micro-batches
def batch_strata(seed: int, step: int, cells: int, device: torch.device) -> Tensor:
    """Permute the strata 0..cells-1 of a global batch by (seed, step): (cells,), shared by all who ask, to be read."""
    return ranks(rng.uniform(seed, rng.STRATUM, torch.arange(cells, device=device), step))


def block_uniforms(noise: NoiseKeys, n_blocks: int, draws: int, stratified: bool) -> Tensor:
    """Draw a uniform in [0, 1) for each block, (b, D, g) float64.

    Stratified: the blocks of all rows and draws of the global batch take the strata of [0, 1), each once, in an order
    permuted by (seed, step): the batch covers the range evenly, and no stratum is tied to a position. With
    `noise.total == 1` each row and draw stratifies over its own blocks, so that draws are independent replicates.
    """
    device, b = noise.row.device, len(noise.row)
    row, draw = noise.row[:, None, None], torch.arange(draws, device=device)[:, None]
    block = torch.arange(n_blocks, device=device)
    jitter = rng.uniform(noise.seed, rng.COUNT, row, draw, block, noise.step)
    if not stratified:
        return jitter
    if noise.total == 1:
        stratum = rng.uniform(noise.seed, rng.STRATUM, row, draw, block, noise.step)
        return (ranks(stratum) + jitter) / n_blocks
    cells = noise.total * draws * n_blocks
    strata = batch_strata(noise.seed, noise.step, cells, device).view(noise.total, draws, n_blocks)
    return (strata[noise.first : noise.first + b] + jitter) / cells


def position_uniforms(noise: NoiseKeys, length: int, draws: int, purpose: int = rng.ORDER) -> Tensor:
    """Draw a uniform in [0, 1) for each token, (b, D, N) float64.

    The order of those of purpose `rng.ORDER` decides which tokens are masked.
    """
    device = noise.row.device
    draw, position = torch.arange(draws, device=device)[:, None], torch.arange(length, device=device)
    return rng.uniform(noise.seed, purpose, noise.row[:, None, None], draw, position, noise.step)


def target_ranks(noise: NoiseKeys, is_target: Tensor, block_size: int, draws: int) -> Tensor:
    """Rank the L target tokens of each block at random, 0..L-1, the others behind them: (b, D, g, B)."""
    scores = position_uniforms(noise, is_target.shape[1], draws)
    scores = scores.masked_fill(~is_target[:, None], 2.0)
    return ranks(block_view(scores, block_size, 3.0))
