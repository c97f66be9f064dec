"""Decoders that reveal where the network is surest: a number of positions per step, or all above a threshold.

The score comes from the distribution at temperature 1, whatever the sampling settings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hybrid.decoding.ranked import ranks
from hybrid.decoding.view import View, quota
from hybrid.options import at_least, option

RESOLUTION = 2.0**-16
"""Scores closer than this are a tie, and the leftmost position wins. Positions of a block without any context have the
same distribution, up to rounding that differs with the batch; without ties the order would differ too."""


@dataclass(frozen=True)
class Scored:
    """Reveal the positions of highest score; subclasses say what the score is."""

    steps: int | None = option(None, "forwards per block; null: one token at a time (unless a threshold is given)")
    threshold: float | None = option(None, "reveal every position whose score reaches it, and at least one")

    def __post_init__(self) -> None:
        if self.steps is not None:
            at_least("steps", self.steps, 1)
        if self.steps is not None and self.threshold is not None:
            raise ValueError("threshold: give either steps or threshold, not both")

    def score(self, view: View) -> Tensor:
        """(r, B), higher is surer."""
        raise AssertionError("subclasses define it")

    def start(self, view: View) -> Tensor | None:
        return quota(view.is_masked, self.steps) if self.threshold is None else None

    def select(self, view: View, state: Tensor | None) -> tuple[Tensor, None]:
        score = self.score(view)
        rank = ranks(-(score / RESOLUTION).round(), view.is_masked)
        if state is None:
            assert self.threshold is not None
            return view.is_masked & ((score >= self.threshold) | (rank == 0)), None
        if view.step >= state.shape[1]:
            return torch.zeros_like(view.is_masked), None
        return view.is_masked & (rank < state[:, view.step, None]), None


@dataclass(frozen=True)
class Confidence(Scored):
    """Largest probability of the proposed token (LLaDA; with a threshold, Fast-dLLM)."""

    def score(self, view: View) -> Tensor:
        return view.log_probs.gather(-1, view.proposal[..., None]).squeeze(-1).exp()


@dataclass(frozen=True)
class Margin(Scored):
    """Largest difference of the two largest probabilities (Kim et al., 'Train for the worst, plan for the best')."""

    def score(self, view: View) -> Tensor:
        two = view.log_probs.topk(2, dim=-1).values.exp()
        return two[..., 0] - two[..., 1]


@dataclass(frozen=True)
class Entropy(Scored):
    """Smallest entropy of the token distribution (Dream). The threshold is on minus the entropy, in nats: at most 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None and self.threshold > 0:
            raise ValueError(f"threshold: {self.threshold} is above 0; the score is minus an entropy, so use e.g. -0.5")

    def score(self, view: View) -> Tensor:
        log_probs = view.log_probs
        return (log_probs.exp() * log_probs.clamp(min=-1e30)).sum(-1)
