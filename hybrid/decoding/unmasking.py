"""The unmasking schedule: how many positions each step of a block reveals. Checks of options that decoders share.

Shape legend: r rows of the batch, B positions of the live block, S steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybrid.arguments import integer, number
from hybrid.options import at_least, option, pick

PLANS = ("linear", "cosine")

MAX_COUNT = 1_000_000
"""Largest number of steps, or of tokens a step. Some decoders run through all steps at every block."""


@dataclass(frozen=True)
class UnmaskingSchedule:
    """How many positions each step reveals; one if no option is given."""

    steps: int | None = option(None, "forwards per block; with fewer than tokens, several are revealed at once")
    per_step: int | None = option(None, "tokens revealed per forward; null: one, or as many as `steps` asks for")
    plan: str = option("linear", "how `steps` share a block: evenly, or few tokens first and many last (cosine)", PLANS)

    def __post_init__(self) -> None:
        for name in ("steps", "per_step"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        pick("plan", self.plan, PLANS)
        only_one(steps=self.steps, per_step=self.per_step)
        if self.plan != "linear" and self.steps is None:
            raise ValueError(f"plan: {self.plan!r} says how `steps` share a block; give steps too, or leave plan out")

    def counts(self, is_masked: Tensor) -> Tensor:
        """(r, S) how many of the masked positions (r, B) each row reveals at each step; S is the most steps of a row.

        A row has `steps`, or as many as it has masked positions if these are fewer. With `per_step` the rest is
        revealed in its last step.

            linear  spreads the positions evenly over the steps, the remainder over the first (LLaDA)
            cosine  leaves a fraction cos(pi/2 i/T) masked after step i of T, at least one position a step (MaskGIT,
                    2202.04200)
        """
        total = is_masked.sum(-1, keepdim=True)  # (r, 1)
        if self.steps is None:
            size = self.per_step or 1
            n_steps = -(-int(total.max()) // size)
            return (total - size * torch.arange(n_steps, device=is_masked.device)).clamp(0, size)
        n_steps = total.clamp(min=1, max=self.steps)
        step = torch.arange(int(n_steps.max()), device=is_masked.device)
        if self.plan == "linear":
            share = total // n_steps + (step < total % n_steps)
            return share.masked_fill(step >= n_steps, 0)
        i = (step + 1).minimum(n_steps)  # (r, S)
        wanted = (total * torch.cos(math.pi / 2 * i.double() / n_steps) + 1e-9).floor().long()  # 4 cos(pi/3) is 2
        left = wanted.maximum(n_steps - i).minimum((total - 1).clamp(min=0))  # each step to come has a position left
        left = (left + i).cummin(-1).values - i  # and so has each step that was
        return torch.cat([total, left], dim=1).diff(dim=1).neg()


def check_count(name: str, value: Any) -> None:
    """Raise a ValueError unless this is an integer from 1 to MAX_COUNT."""
    if isinstance(value, int):
        at_least(name, value, 1)
    integer(name, value, 1, MAX_COUNT)


def check_number(name: str, value: Any, least: float) -> None:
    """Raise a ValueError unless this is a finite number of at least `least`."""
    number(name, value, lambda _: True, f"a finite number of at least {least}")
    at_least(name, value, least)


def only_one(**given: Any) -> None:
    """Raise a ValueError if more than one of these alternative options is not None."""
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ValueError(f"{names[1]}: give either {names[0]} or {names[1]}, not both")
