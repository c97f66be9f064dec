"""Decoders that take back what they revealed: positions of the live block become MASK again, the prompt never.

Shape legend: r rows of the batch, B positions of the live block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hybrid.arguments import number
from hybrid.decoding.confidence import surest_first
from hybrid.decoding.decoder import View
from hybrid.decoding.unmasking import check_count, check_number
from hybrid.objectives.schedules import SCHEDULES, Schedule
from hybrid.options import build, option, pick, shown

MAX_CORRECTIONS = 10_000
"""Steps of the corrector. Each draws anew, so none can be left out, however few tokens a block has."""


@dataclass(frozen=True)
class MaskPredict:
    """Predict all masked tokens, then re-mask the least confident of the block (Ghazvininejad et al. 1904.09324).

    After round i of T, floor(L (T - i) / T) of the L positions that are not prompt are masked: those of smallest
    confidence, with the confidence that a token had when it was predicted.
    """

    steps: int = option(10, "rounds T per block, each one forward")

    def __post_init__(self) -> None:
        check_count("steps", self.steps)

    def start(self, view: View) -> Tensor:
        """(r, B) the confidence that each token had when it was predicted."""
        return torch.ones(view.is_masked.shape, dtype=torch.float64, device=view.is_masked.device)

    def select(self, view: View, state: Tensor) -> tuple[Tensor, Tensor]:
        state.copy_(torch.where(view.is_masked, view.confidence.double(), state))
        free = view.is_free
        n = free.sum(-1, keepdim=True)
        n_masked = n * max(self.steps - view.step - 1, 0) // self.steps
        return view.is_masked, free & (surest_first(state, free) >= n - n_masked)


def masked_after(n: Tensor, fractions: list[float], step: int) -> Tensor:
    """floor(n f) of n positions, f the masked fraction after a step; that of the last step holds behind it."""
    return (n * fractions[min(step, len(fractions) - 1)] + 1e-9).floor().long()  # the small term: 10 times 0.3 is 3


@dataclass(frozen=True)
class PathPlanning:
    """P2: a planner chooses which positions are masked next, known ones among them (Peng et al. 2502.03540).

    A masked position scores log p(candidate), a known one eta log p(token), prompts are never chosen. After step i of T
    the floor(n (1 - kappa(i/T))) lowest of the n positions that are not prompt are MASK, the others show their token.
    1 - kappa is the masked fraction of `kappa` as time runs from 1 to 0. The planner is the network itself (known
    tokens are then scored by what it says where nothing is masked, for which it was not trained) or the engine's.
    """

    steps: int = option(16, "steps T per block, each one forward (and one of the planner)")
    eta: float = option(1.0, "how readily known tokens are masked again; 0: never, above 1: more readily")
    kappa: Any = option("linear", "an entry of SCHEDULES; how many are masked after each step")

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_number("eta", self.eta, least=0)
        build(SCHEDULES, self.kappa, "kappa")

    def start(self, view: View) -> list[float]:
        """Masked fraction after each step."""
        return time_grid(self.kappa, self.steps)[1:]

    def select(self, view: View, state: list[float]) -> tuple[Tensor, Tensor | None]:
        free, masked = view.is_free, view.is_masked
        n = free.sum(-1, keepdim=True)
        n_masked = masked_after(n, state, view.step)
        if self.eta == 0:
            keep = masked.sum(-1, keepdim=True) - n_masked
            if not bool((keep > 0).any()):
                return torch.zeros_like(masked), None
            return masked & (surest_first(view.planned, masked) < keep), None
        # Divided by eta where it is large, so that rounding is not multiplied by it.
        weight = torch.where(masked, 1 / max(1.0, self.eta), min(1.0, self.eta))
        shown = surest_first(view.planned * weight, free) < n - n_masked
        return masked & shown, free & ~masked & ~shown


@dataclass(frozen=True)
class CausalCorrector:
    """Fill the block, score it by the causal law, and put the tokens of highest NLL back to MASK (BlockGen's ARPC).

    After step i of T the floor(n (1 - kappa(i/T))) least probable of the n positions that are not prompt are MASK, each
    scored by log p(token | those before it) in the block as it is filled. 1 - kappa is the masked fraction of `kappa`
    as time runs from 1 to 0. The last step is not scored.
    """

    reads_causally: ClassVar[bool] = True
    steps: int = option(4, "steps T per block, each one forward, and but for the last a causal one")
    kappa: Any = option("linear", "an entry of SCHEDULES; how many are masked after each step")

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        if self.steps > MAX_CORRECTIONS:
            raise ValueError(
                f"steps: {shown(self.steps)} of two forwards each take too long, whatever a block's length; give at "
                f"most {MAX_CORRECTIONS:,}"
            )
        build(SCHEDULES, self.kappa, "kappa")

    def start(self, view: View) -> list[float]:
        """Masked fraction after each step."""
        return time_grid(self.kappa, self.steps)[1:]

    def select(self, view: View, state: list[float]) -> tuple[Tensor, Tensor | None]:
        free, masked = view.is_free, view.is_masked
        n = free.sum(-1, keepdim=True)
        n_masked = masked_after(n, state, view.step)
        if not bool(n_masked.any()):
            return masked, None
        filled = view.candidates
        log_probs = view.read(filled.masked_fill(~view.is_valid, view.mask_token_id), free, causal=True)
        scores = log_probs.gather(-1, filled[free][:, None]).squeeze(-1)
        scores = scores.new_zeros(free.shape).masked_scatter(free, scores)
        shown = surest_first(scores, free) < n - n_masked
        return masked & shown, free & ~masked & ~shown


@dataclass(frozen=True)
class ReMDM:
    """Ancestral decoding in which a known token is masked again with probability sigma (Wang et al. 2503.00307).

    From t to s on the grid, a masked token is revealed with probability
    (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), which leaves the expected number of masked tokens as it is without
    re-masking. With sigma_max = min(1, (1 - alpha_s) / alpha_t), sigma is one of

        cap         min(eta, sigma_max)
        rescale     eta sigma_max
        confidence  eta sigma_max w at known tokens and 0 at masked ones, w the softmax, over the known tokens of the
                    block, of minus the probability that each had when it was revealed (the paper has eta = 1)

    Every block runs through the whole grid, complete or not. Steps that reveal nothing need no forward.
    """

    steps: int = option(32, "cells of the time grid, for each block")
    schedule: Any = option("linear", "an entry of SCHEDULES")
    sigma: str = option("cap", "how the probability of re-masking is set", ("cap", "rescale", "confidence"))
    eta: float = option(0.1, "strength of re-masking, from 0 (none: ancestral decoding) to 1")

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        build(SCHEDULES, self.schedule, "schedule")
        pick("sigma", self.sigma, ("cap", "rescale", "confidence"))
        number("eta", self.eta, lambda eta: 0 <= eta <= 1, "from 0 (no re-masking) to 1")

    @property
    def min_steps(self) -> int:
        return self.steps

    def start(self, view: View) -> tuple[list[float], Tensor]:
        """Masked fractions of the grid, and the (r, B) probability that each token had when it was revealed."""
        return time_grid(self.schedule, self.steps), torch.ones_like(view.tokens, dtype=torch.float64)

    def select(self, view: View, state: tuple[list[float], Tensor]) -> tuple[Tensor, Tensor]:
        grid, revealed_with = state
        now, then = grid[view.step : view.step + 2]  # 1 - alpha_t and 1 - alpha_s
        known = view.is_free & ~view.is_masked
        largest = min(1.0, then / (1 - now)) if now < 1 else 1.0
        sigma = min(self.eta, largest) if self.sigma == "cap" else self.eta * largest
        if self.sigma != "confidence":
            reveal = view.is_masked & (view.uniform < (now - then + sigma * (1 - now)) / now)
            return reveal, known & (view.uniform < sigma)
        reveal = view.is_masked & (view.uniform < (now - then) / now)
        weight = (-revealed_with).masked_fill(~known, -torch.inf).softmax(-1)  # nan where nothing is known
        remask = known & (view.uniform < sigma * weight)
        if bool(reveal.any()):
            revealed_with.copy_(torch.where(reveal, view.confidence.double(), revealed_with))
        return reveal, remask


def time_grid(spec: Any, steps: int) -> list[float]:
    """Masked fractions of a schedule at times 1, 1 - 1/steps, ..., 0, exact at both ends."""
    schedule: Schedule = build(SCHEDULES, spec, "schedule")
    inner = schedule.one_minus_alpha(torch.linspace(1, 0, steps + 1, dtype=torch.float64)[1:-1])
    return [1.0, *inner.tolist(), 0.0]
