"""Decoders whose order is drawn before the block starts: positions have ranks, and step s reveals rank s.

They need no look at the network to decide, so every step that reveals something costs one forward, and no other step
costs anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybrid.decoding.view import View, quota
from hybrid.noise import SCHEDULES, Schedule
from hybrid.options import at_least, build, option


def ranks(scores: Tensor, is_masked: Tensor) -> Tensor:
    """(r, B) rank of each masked position by increasing score; the others rank behind."""
    return scores.double().masked_fill(~is_masked, torch.inf).argsort(dim=-1, stable=True).argsort(dim=-1)


class Ranked:
    """Reveal what has rank `step`."""

    def select(self, view: View, state: Tensor) -> tuple[Tensor, None]:
        return (state == view.step) & view.is_masked, None


def steps_of(rank: Tensor, is_masked: Tensor, steps: int | None) -> Tensor:
    """(r, B) the step at which each masked position is revealed, if positions go by rank in `steps` steps."""
    if steps is None:
        return rank
    ends = quota(is_masked, steps).cumsum(-1)  # (r, S)
    return torch.searchsorted(ends, rank, right=True)


@dataclass(frozen=True)
class FirstHitting(Ranked):
    """One uniformly random masked position at a time: the exact any-order process without a time grid.

    Zheng et al. 2409.02908, prop. 4.1. With fewer steps than positions several are revealed at once, no longer exactly.
    """

    steps: int | None = option(None, "forwards per block; null: one token at a time (exact)")

    def __post_init__(self) -> None:
        if self.steps is not None:
            at_least("steps", self.steps, 1)

    def start(self, view: View) -> Tensor:
        return steps_of(ranks(view.uniform, view.is_masked), view.is_masked, self.steps)


@dataclass(frozen=True)
class LeftToRight(Ranked):
    """The leftmost masked position first."""

    steps: int | None = option(None, "forwards per block; null: one token at a time")

    def __post_init__(self) -> None:
        if self.steps is not None:
            at_least("steps", self.steps, 1)

    def start(self, view: View) -> Tensor:
        position = torch.arange(view.is_masked.shape[1], device=view.is_masked.device).expand_as(view.is_masked)
        return steps_of(ranks(position, view.is_masked), view.is_masked, self.steps)


@dataclass(frozen=True)
class Ancestral(Ranked):
    """The reverse process on a time grid (MDLM): from t to s, each masked token is revealed with probability
    (alpha_s - alpha_t) / (1 - alpha_t).

    A token is revealed in the cell that holds its hitting time, whose masked fraction 1 - alpha is uniform, so that
    cells can be drawn beforehand; the number per cell is then binomial, as it must be. A model without a time variable
    can't tell in which cell it is, so cells in which nothing happens are left out.
    """

    steps: int = option(16, "cells of the time grid")
    schedule: Any = option("linear", "an entry of SCHEDULES; decides how the grid's cells divide the masked fraction")

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        build(SCHEDULES, self.schedule, "schedule")

    def start(self, view: View) -> Tensor:
        schedule: Schedule = build(SCHEDULES, self.schedule, "schedule")
        grid = schedule.masked(torch.linspace(0, 1, self.steps + 1, dtype=torch.float64, device=view.tokens.device))
        cell = self.steps - torch.searchsorted(grid[1:-1].contiguous(), view.uniform)  # time runs from 1 to 0
        cell = cell.masked_fill(~view.is_masked, self.steps + 1)
        ordered, index = cell.sort(dim=-1)
        new = torch.cat([torch.zeros_like(ordered[:, :1]), (ordered[:, 1:] != ordered[:, :-1]).long()], dim=1)
        return torch.empty_like(cell).scatter_(1, index, new.cumsum(1))
