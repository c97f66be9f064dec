"""Decoders whose order is set before the block starts: positions have ranks, and step s reveals what is due at it.

They need no look at the network to decide, so every step that reveals something costs one forward, and no other step
costs anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybrid import rng
from hybrid.arguments import SEEDS, integer
from hybrid.decoding.decoder import View
from hybrid.decoding.unmasking import UnmaskingSchedule, check_count
from hybrid.objectives.schedules import SCHEDULES, Schedule
from hybrid.options import build, option


def ranks(scores: Tensor, among: Tensor) -> Tensor:
    """Return the (r, B) rank of each position of `among` by increasing score; the others rank behind.

    Equal scores rank from the left.
    """
    return scores.double().masked_fill(~among, torch.inf).argsort(dim=-1, stable=True).argsort(dim=-1)


class FixedOrder:
    """Reveal what is due at `view.step`; the state is the (r, B) step at which each position is."""

    def step_sizes(self, view: View, state: Tensor) -> Tensor:
        """(B,) how many positions are due at each of the first B steps: with these orders they are all."""
        most = state.shape[1]
        sizes = state.new_zeros(most + 1)
        sizes.index_add_(0, state.clamp(max=most).flatten(), view.is_masked.flatten().to(state.dtype))
        return sizes[:most]

    def select(self, view: View, state: Tensor) -> tuple[Tensor, None]:
        return (state == view.step) & view.is_masked, None


@dataclass(frozen=True)
class Ordered(FixedOrder, UnmaskingSchedule):
    """Reveal the masked positions by increasing `scores`."""

    def scores(self, view: View) -> Tensor:
        """(r, B) or (B,), without a look at the network."""
        raise AssertionError("subclasses define it")

    def start(self, view: View) -> Tensor:
        """(r, B) the step at which each position is due."""
        rank = ranks(self.scores(view).expand(view.is_masked.shape), view.is_masked)
        if self.steps is None:
            return rank if self.per_step is None else rank // self.per_step
        return torch.searchsorted(self.counts(view.is_masked).cumsum(-1), rank, right=True)


@dataclass(frozen=True)
class FirstHitting(Ordered):
    """A uniformly random masked position at a time, in an order drawn anew for each block of each row.

    One token a step samples the model's any-order distribution exactly, without a time grid (Zheng et al. 2409.02908,
    prop. 4.1). Several at once are drawn independently, no longer exactly.
    """

    def scores(self, view: View) -> Tensor:
        return view.uniform


@dataclass(frozen=True)
class Random(Ordered):
    """One random permutation of the block's positions, the same for every row and block.

    Unlike the orders of `first_hitting` it is fixed by its seed: the order is a function of the position alone, and
    the likelihood of the texts that it writes is a product of conditionals.
    """

    order_seed: int = option(0, "which permutation; other than the seed of the text")

    def __post_init__(self) -> None:
        super().__post_init__()
        integer("order_seed", self.order_seed, *SEEDS)

    def scores(self, view: View) -> Tensor:
        position = torch.arange(view.is_masked.shape[1], device=view.is_masked.device)
        return rng.uniform(self.order_seed, rng.ORDER, position)


@dataclass(frozen=True)
class LeftToRight(Ordered):
    """The leftmost masked position first."""

    def scores(self, view: View) -> Tensor:
        return torch.arange(view.is_masked.shape[1], device=view.is_masked.device)


@dataclass(frozen=True)
class Ancestral(FixedOrder):
    """The reverse process on a time grid (MDLM): from t to s, each masked token is revealed with probability
    (alpha_s - alpha_t) / (1 - alpha_t).

    A token is revealed in the cell that holds its hitting time, whose masked fraction 1 - alpha is uniform, so that
    cells can be drawn beforehand; the number per cell is then binomial, as it must be. A model without a time variable
    can't tell in which cell it is, so cells in which nothing happens are left out.
    """

    steps: int = option(16, "cells of the time grid")
    schedule: Any = option("linear", "an entry of SCHEDULES; decides how the grid's cells divide the masked fraction")

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        build(SCHEDULES, self.schedule, "schedule")

    def start(self, view: View) -> Tensor:
        schedule: Schedule = build(SCHEDULES, self.schedule, "schedule")
        time = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64, device=view.tokens.device)
        grid = schedule.one_minus_alpha(time)
        cell = self.steps - torch.searchsorted(grid[1:-1].contiguous(), view.uniform)  # time runs from 1 to 0
        cell = cell.masked_fill(~view.is_masked, self.steps + 1)
        ordered, index = cell.sort(dim=-1)
        new = torch.cat([torch.zeros_like(ordered[:, :1]), (ordered[:, 1:] != ordered[:, :-1]).long()], dim=1)
        return torch.empty_like(cell).scatter_(1, index, new.cumsum(1))
