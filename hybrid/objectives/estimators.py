"""Estimators of the bound: which tokens to mask, and the weight of each.

Shape legend: b rows, D noise draws, N text length, g blocks, B block size, L targets of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from hybrid.objectives.noise import NoiseKeys, block_uniforms, block_view, position_uniforms, target_ranks
from hybrid.objectives.proposals import PROPOSALS, Proposal
from hybrid.objectives.schedules import SCHEDULES, Schedule
from hybrid.options import build, option


@dataclass(frozen=True)
class Masking:
    """Which tokens are masked, (b, D, N) booleans, and the weight (b, D, N) of each one's cross-entropy."""

    masked: Tensor
    weight: Tensor

    @classmethod
    def of_blocks(cls, masked: Tensor, weight: Tensor, length: int) -> Masking:
        """Join the blocks of (b, D, g, B) booleans, and of weights that broadcast against them; `length` is N."""
        flat = masked.flatten(2)[..., :length], weight.expand(masked.shape).flatten(2)[..., :length].double()
        return cls(*flat)


class Estimator(Protocol):
    """Draws masks and weights whose expected weighted sum of cross-entropies is the bound.

    One whose expectation is not the bound says so in its attribute `bias`, a text.
    """

    def draw(self, noise: NoiseKeys, is_target: Tensor, block_size: int, draws: int, stratified: bool) -> Masking:
        """Draw masks for rows whose target tokens are True in `is_target` (b, N); only those are ever masked.

        Where nothing is random, one draw stands for all.
        """
        ...


@dataclass(frozen=True)
class Count:
    """Count form: n tokens of each block are masked, n from a proposal pi; weight 1 / (n pi(n)) each, so that the block
    gives m_n / pi(n). With the uniform proposal that is L m_n.

    At L = 1 it is the exact autoregressive NLL, without noise. The number of masked tokens is all that the model needs
    to know, and it can count: no time variable. Complementary draws 2k and 2k + 1 mask a set and the rest of its block,
    n from q(n) = (pi(n) + pi(L - n)) / 2, weight 1 / (n q(n)) each: every token is masked once per pair.
    """

    proposal: Any = option("uniform", "an entry of PROPOSALS")
    complementary: bool = option(False, "draws come in pairs of a set and the rest of its block")

    def __post_init__(self) -> None:
        build(PROPOSALS, self.proposal, "proposal")

    @cached_property
    def source(self) -> Proposal:
        """Build the proposal."""
        return build(PROPOSALS, self.proposal, "proposal")

    def draw(self, noise: NoiseKeys, is_target: Tensor, block_size: int, draws: int, stratified: bool) -> Masking:
        if block_size == 1:  # nothing is random
            target = is_target[:, None]
            return Masking(target, target.double())
        if self.complementary and draws % 2:
            raise ValueError(f"objective.draws: {draws} is odd; complementary draws come in pairs, so make it even")
        n_sets = draws // 2 if self.complementary else draws
        rank = target_ranks(noise, is_target, block_size, n_sets)  # (b, S, g, B)
        targets = block_view(is_target, block_size, False).sum(-1)[:, None]  # (b, 1, g): L
        q = self._probabilities(targets, block_size)  # (b, 1, g, B + 1)
        u = block_uniforms(noise, rank.shape[2], n_sets, stratified)
        below = q.cumsum(-1)
        n = (u[..., None] * below[..., -1:] >= below).sum(-1).minimum(targets)  # (b, S, g)
        chosen, counts = [rank < n[..., None]], [n]
        if self.complementary:
            chosen.append((rank >= n[..., None]) & (rank < targets[..., None]))
            counts.append(targets - n)
        masked = torch.stack(chosen, dim=2).flatten(1, 2)  # (b, D, g, B)
        n = torch.stack(counts, dim=2).flatten(1, 2)
        probability = q.expand(*n.shape, -1).gather(-1, n[..., None])
        weight = 1 / (n[..., None].clamp(min=1) * probability)
        return Masking.of_blocks(masked, weight, is_target.shape[1])

    def _probabilities(self, targets: Tensor, block_size: int) -> Tensor:
        """Return the probability to mask n = 0..B of `targets` (b, 1, g) tokens, (b, 1, g, B + 1) float64."""
        sizes, index = targets.unique(return_inverse=True)
        table = torch.zeros(len(sizes), block_size + 1, dtype=torch.float64)
        for row, size in enumerate(sizes.tolist()):
            pi = self.source.probabilities(size, block_size)
            table[row, : size + 1] = (pi + pi.flip(0)) / 2 if self.complementary else pi
        return table.to(targets.device)[index]


@dataclass(frozen=True)
class Time:
    """Time form: t ~ U[0, 1] per block, each token masked with probability 1 - alpha(t), weight -alpha'/(1 - alpha).

    The number of masked tokens is binomial given t, and may be 0. Same expectation as the count form for every
    schedule, more variance.
    """

    schedule: Any = option("linear", "an entry of SCHEDULES")

    def draw(self, noise: NoiseKeys, is_target: Tensor, block_size: int, draws: int, stratified: bool) -> Masking:
        schedule: Schedule = build(SCHEDULES, self.schedule, "objective.schedule")
        length = is_target.shape[1]
        t = self.time(1 - block_uniforms(noise, -(-length // block_size), draws, stratified))
        coin = position_uniforms(noise, length, draws)
        probability = schedule.one_minus_alpha(t)[..., None]
        masked = block_view(coin, block_size, 2.0) < probability
        weight = -schedule.derivative(t)[..., None] / probability.clamp(min=1e-300)
        targets = block_view(is_target, block_size, False)[:, None]
        return Masking.of_blocks(masked & targets, weight, length)

    def time(self, u: Tensor) -> Tensor:
        """Turn uniforms in (0, 1] into times; never 0, where the weight would be a division by 0."""
        return u


@dataclass(frozen=True)
class Clipped(Time):
    """Time form with t ~ U[low, high] and the same weight (BD3-LM's clipped schedules): less variance, but BIASED.

    Its expectation is not the bound: masks that are rare or common outside the interval are over- or underrated.
    """

    low: float = option(0.3, "earliest time, at least 0")
    high: float = option(0.8, "latest time, at most 1")
    bias: ClassVar[str] = "times outside of [low, high] are left out; its loss is not the ELBO"

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"low: {self.low} and high: {self.high} must be 0 <= low < high <= 1")

    def time(self, u: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * u


ESTIMATORS: dict[str, Any] = {"count": Count, "time": Time, "clipped": Clipped}
