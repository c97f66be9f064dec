"""Decoders that reveal where the network is surest: a number of positions per step, or all that are sure enough.

The score comes from the distribution at temperature 1, whatever the sampling settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybrid.arguments import number
from hybrid.decoding.decoder import View
from hybrid.decoding.fixed_order import ranks
from hybrid.decoding.unmasking import UnmaskingSchedule, check_number, only_one
from hybrid.options import option, pick

RESOLUTION = 2.0**-16
"""Scores closer than this are a tie, and the leftmost position wins. Positions of a block without any context have the
same distribution, up to rounding that differs with the batch; without ties the order would differ too."""


def surest_first(score: Tensor, among: Tensor) -> Tensor:
    """Return the (r, B) rank of each position of `among` by decreasing score; the others rank behind.

    Scores are rounded as distances from the best of the row, so that what is equal to the best stays so.
    """
    score = score.double().masked_fill(~among, -torch.inf)
    return ranks(((score.amax(-1, keepdim=True) - score) / RESOLUTION).round(), among)


def reaches(score: Tensor, bound: Tensor | float) -> Tensor:
    """score >= bound; a score that is equal to the bound but for rounding reaches it."""
    return score > bound - RESOLUTION / 2


def entropies(log_probs: Tensor) -> Tensor:
    """(..., V) -> (...) in nats."""
    return -(log_probs.exp() * log_probs.clamp(min=-1e30)).sum(-1)


@dataclass(frozen=True)
class ByConfidence(UnmaskingSchedule):
    """Reveal the positions of highest score; subclasses say what the score is."""

    threshold: float | None = option(None, "reveal every position whose score reaches it, and at least one")
    largest_score: ClassVar[float | None] = None  # where scores are probabilities: 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None:
            most = self.largest_score
            allowed = "a finite number" if most is None else f"from 0 to {most}, as the score is"
            number("threshold", self.threshold, lambda score: most is None or 0 <= score <= most, allowed)
        only_one(steps=self.steps, per_step=self.per_step, threshold=self.threshold)

    def score(self, view: View) -> Tensor:
        """(r, B), higher is surer; only masked positions matter."""
        raise AssertionError("subclasses define it")

    def start(self, view: View) -> Tensor | None:
        return self.counts(view.is_masked) if self.threshold is None else None

    def select(self, view: View, state: Tensor | None) -> tuple[Tensor, None]:
        if state is not None and view.step >= state.shape[1]:
            return torch.zeros_like(view.is_masked), None
        score = self.score(view)
        rank = surest_first(score, view.is_masked)
        chosen = (
            rank < state[:, view.step, None] if state is not None else (rank == 0) | self.is_sure(score, rank, view)
        )
        return view.is_masked & chosen, None

    def step_sizes(self, view: View, state: Tensor | None) -> Tensor | None:
        """(S,) how many positions the schedule reveals at each step; None: a bound decides, or a factor."""
        return None if state is None else state.sum(0)

    def is_sure(self, score: Tensor, rank: Tensor, view: View) -> Tensor:
        """(r, B): sure enough to be revealed at once, where no schedule says how many."""
        assert self.threshold is not None
        return reaches(score, self.threshold)


@dataclass(frozen=True)
class Confidence(ByConfidence):
    """Largest probability of the candidate (LLaDA; with a threshold or a factor, Fast-dLLM 2505.22618).

    `factor` reveals the n surest, for the largest n with (n + 1) (1 - c_n) < factor, c_n the n-th largest confidence.
    """

    largest_score = 1
    factor: float | None = option(None, "reveal as many as keep (n + 1) (1 - c_n) below it, and at least one")
    token: str = option(
        "drawn",
        "whose probability: that of the token drawn, or the largest (then the order does not depend on the draw)",
        ("drawn", "best"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        pick("token", self.token, ("drawn", "best"))
        only_one(steps=self.steps, per_step=self.per_step, threshold=self.threshold, factor=self.factor)
        if self.factor is not None:
            allowed = "above 0 and finite; e.g. 1.0, larger reveals more at once"
            number("factor", self.factor, lambda factor: factor > 0, allowed)

    def score(self, view: View) -> Tensor:
        if self.token == "drawn":
            return view.confidence
        return view.scatter(view.prediction.log_probs.amax(-1).exp(), 1.0)

    def start(self, view: View) -> Tensor | None:
        return super().start(view) if self.factor is None else None

    def is_sure(self, score: Tensor, rank: Tensor, view: View) -> Tensor:
        if self.factor is None:
            return super().is_sure(score, rank, view)
        c = torch.empty_like(score).scatter_(-1, rank, score)  # c[n - 1]: the n-th largest
        n = torch.arange(1, c.shape[-1] + 1, device=c.device)
        few = ~reaches(1 - c, self.factor / (n + 1)) & (n <= view.is_masked.sum(-1, keepdim=True))
        return rank < (few * n).amax(-1, keepdim=True)


@dataclass(frozen=True)
class Margin(ByConfidence):
    """Largest difference of the two largest probabilities (Kim et al., 'Train for the worst, plan for the best')."""

    largest_score = 1

    def score(self, view: View) -> Tensor:
        two = view.prediction.log_probs.topk(2, dim=-1).values.exp()
        return view.scatter(two[:, 0] - two[:, 1], 1.0)


@dataclass(frozen=True)
class Entropy(ByConfidence):
    """Smallest entropy of the token distribution (Dream). The threshold is on minus the entropy, in nats: at most 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None and self.threshold > 0:
            raise ValueError(f"threshold: {self.threshold} is above 0; the score is minus an entropy, so use e.g. -0.5")

    def score(self, view: View) -> Tensor:
        return view.scatter(-entropies(view.prediction.log_probs), 0.0)


@dataclass(frozen=True)
class EntropyBounded:
    """The most positions whose joint uncertainty is bounded (EB-sampler, Ben-Hamu et al. 2505.24857).

    In order of increasing entropy, the largest set U with sum_U H - max_U H <= gamma. The left side bounds the mutual
    information of the positions, hence what is lost by drawing them independently.
    """

    gamma: float = option(0.1, "bound in nats, at least 0; 0 reveals one token at a time, and all that are certain")

    def __post_init__(self) -> None:
        check_number("gamma", self.gamma, least=0)

    def start(self, view: View) -> None:
        return None

    def select(self, view: View, state: None) -> tuple[Tensor, None]:
        entropy = view.scatter(entropies(view.prediction.log_probs).double(), 0.0)
        rank = surest_first(-entropy, view.is_masked)
        ordered = torch.empty_like(entropy).scatter_(-1, rank, entropy)
        before = ordered.cumsum(-1) - ordered  # the sum without the largest, which is the last
        return view.is_masked & reaches(self.gamma - before, 0.0).gather(-1, rank), None
