"""What a decoder sees, and what it must be.

Shape legend: r rows of the batch, B positions of the live block, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """What the network says of the m masked positions of a live block, in the order of `is_masked.nonzero()`."""

    log_probs: Tensor  # (m, V) at temperature 1
    proposal: Tensor  # (m,) ids


@dataclass(eq=False)
class View:
    """The live block at one step.

    `proposal` and `log_probs` run the network when they are first read. A decoder that decides without them costs a
    forward only if it reveals something.
    """

    step: int  # 0, 1, ... within the block
    tokens: Tensor  # (r, B) ids, mask_token_id where unknown
    is_masked: Tensor  # (r, B) booleans: may be revealed
    is_fixed: Tensor  # (r, B): part of the prompt, may never be re-masked
    is_valid: Tensor  # (r, B): False behind the end of a short last block
    draw: Callable[[], Tensor]
    forward: Callable[[], Prediction]

    @cached_property
    def uniform(self) -> Tensor:
        """(r, B) float64 in [0, 1), independent of the batch: for decisions that are random."""
        return self.draw()

    @cached_property
    def prediction(self) -> Prediction:
        return self.forward()

    @cached_property
    def proposal(self) -> Tensor:
        """(r, B) a token for each masked position, drawn with the sampling settings; elsewhere what is there."""
        there = self.tokens.clamp(max=self.prediction.log_probs.shape[-1] - 1)  # MASK behind a short block: any token
        return there.masked_scatter(self.is_masked, self.prediction.proposal)

    @cached_property
    def log_probs(self) -> Tensor:
        """(r, B, V) at temperature 1, before top-k and top-p; a known position has all its mass on its token."""
        masked = self.prediction.log_probs
        known = self.tokens.clamp(max=masked.shape[-1] - 1)[..., None]
        full = masked.new_full((*self.tokens.shape, masked.shape[-1]), -torch.inf).scatter_(-1, known, 0.0)
        full[self.is_masked] = masked
        return full


class Decoder(Protocol):
    """Decides which positions to reveal. The engine owns tokens, sampling and the loop."""

    def start(self, view: View) -> Any:
        """State of a block, made before its first step (nothing needs to be known of the network yet)."""
        ...

    def select(self, view: View, state: Any) -> tuple[Tensor, Tensor | None]:
        """(reveal, remask), booleans (r, B). Positions revealed take their proposal; None re-masks nothing."""
        ...


def quota(is_masked: Tensor, steps: int | None) -> Tensor:
    """(r, S) how many positions each row reveals at each step; S is the most steps that a row needs.

    The masked positions are spread evenly over `steps` steps, the remainder over the first (LLaDA); None: one a step.
    """
    total = is_masked.sum(-1, keepdim=True)  # (r, 1)
    n_steps = total.clamp(min=1) if steps is None else total.clamp(min=1, max=steps)
    step = torch.arange(int(n_steps.max()), device=is_masked.device)
    share = total // n_steps + (step < total % n_steps)
    return share.masked_fill(step >= n_steps, 0)
