"""Weightings: what is trained, if not the ELBO.

An objective sums E[m_n], the mean cross-entropy over n masked tokens of a block, with weights omega_n; the ELBO has
omega_n = 1. All positive omega have the same best network (Zheng et al. 2409.02908, prop. 3.2), so a weighting is about
finite capacity and noisy gradients. Here sum_n omega_n = L: the loss of a block is on the scale of L tokens. Evaluation
never uses a weighting: validation reports the ELBO.

Shape legend: b rows, D noise draws, N text length, g blocks, B block size, L target tokens of a block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybrid.objectives.noise import block_view
from hybrid.objectives.proposals import normalised
from hybrid.options import REMOVED, Removed, option


@dataclass(frozen=True)
class Weighting:
    """omega_n, and the proposal that the method was published with (`objective.proposal=published`)."""

    def of_counts(self, n_targets: int) -> Tensor:
        """Return omega_0..L, (L + 1,) float64, 0 at n = 0, of sum L."""
        raise AssertionError("subclasses define it")

    def probabilities(self, n_targets: int, block_size: int) -> Tensor:
        """Return pi(0..L) as a `Proposal` does, (L + 1,) float64."""
        return normalised(torch.ones(n_targets))

    def of_tokens(self, masked: Tensor, block_size: int) -> Tensor | None:
        """Return a further factor for each masked token, (b, D, N), as CART has; None: there is none."""
        return None


@dataclass(frozen=True)
class Elbo(Weighting):
    """omega_n = 1: the bound itself."""

    def of_counts(self, n_targets: int) -> Tensor:
        return n_targets * normalised(torch.ones(n_targets))


@dataclass(frozen=True)
class PlainCrossEntropy(Weighting):
    """omega_n ~ n: every masked token counts the same. With n ~ U{1..L} it is Mask-Predict's sum of cross-entropies
    (Ghazvininejad et al. 1904.09324), and the 'low-variance' loss of large masked models."""

    def of_counts(self, n_targets: int) -> Tensor:
        return n_targets * normalised(torch.arange(1, n_targets + 1))


@dataclass(frozen=True)
class MaskGIT(Weighting):
    """n = ceil(cos(pi u / 2) L) with u ~ U[0, 1], and the mean cross-entropy (Chang et al. 2202.04200): many masked
    tokens are seen more often than few."""

    def of_counts(self, n_targets: int) -> Tensor:
        return n_targets * self.probabilities(n_targets, n_targets)

    def probabilities(self, n_targets: int, block_size: int) -> Tensor:
        edges = torch.arange(n_targets + 1, dtype=torch.float64) / max(n_targets, 1)
        return normalised(-torch.diff(torch.acos(edges)) * 2 / math.pi)


@dataclass(frozen=True)
class Bert(Weighting):
    """n = share * L, and the mean cross-entropy (Devlin et al. 1810.04805). Other numbers of masked tokens are never
    trained, so the ELBO of such a model is poor."""

    share: float = option(0.15, "of the block's tokens, at least one token")

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share: {self.share} must be above 0 and at most 1")

    def of_counts(self, n_targets: int) -> Tensor:
        return n_targets * self.probabilities(n_targets, n_targets)

    def probabilities(self, n_targets: int, block_size: int) -> Tensor:
        n = torch.arange(1, n_targets + 1)
        return normalised(n == max(round(self.share * n_targets), 1))


@dataclass(frozen=True)
class Cart(PlainCrossEntropy):
    """omega_n ~ n, times sum over known j of p (1-p)^(|i-j|-1) / 2 for each masked token i (Dream 7B): it weighs more
    the nearer its known neighbours are. Known are the unmasked tokens of its block and of all blocks before it. A token
    without any known neighbour weighs nothing: that of a first block which is all masked is never trained."""

    p: float = option(0.3, "of the geometric distribution over distances; above 0, at most 1")

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise ValueError(f"p: {self.p} must be above 0 and at most 1")

    def of_tokens(self, masked: Tensor, block_size: int) -> Tensor:
        position = torch.arange(masked.shape[-1], device=masked.device)
        distance = (position[:, None] - position).abs()
        kernel = 0.5 * self.p * (1 - self.p) ** (distance - 1).clamp(min=0).double() * (distance > 0)
        block = position // block_size
        own, before = block[:, None] == block, block[:, None] > block
        return (~masked).double() @ (kernel * own) + (kernel * before).sum(1)


def weighs_tokens(weighting: Weighting) -> bool:
    """Return whether the masked tokens of a block may differ in weight."""
    return type(weighting).of_tokens is not Weighting.of_tokens


WEIGHTINGS: dict[str, Any] = {
    "elbo": Elbo,
    "uniform": PlainCrossEntropy,
    "maskgit": MaskGIT,
    "bert": Bert,
    "cart": Cart,
}
REMOVED["weighting", "mask_predict"] = Removed("it is the weighting 'uniform' by another name; write that", "uniform")


def weigh(weighting: Weighting, masked: Tensor, is_target: Tensor, block_size: int) -> Tensor:
    """Return what the ELBO weight of each masked token is multiplied by, (b, D, N) float64.

    Args:
        masked: (b, D, N) booleans.
        is_target: (b, N) booleans, the tokens that may be masked.
    """
    n = block_view(masked, block_size, False).sum(-1)  # (b, D, g)
    targets = block_view(is_target, block_size, False).sum(-1)[:, None].expand_as(n)
    factor = torch.ones(n.shape, dtype=torch.float64, device=n.device)
    for n_targets in targets.unique().tolist():
        here = targets == n_targets
        factor[here] = weighting.of_counts(n_targets).to(n.device)[n[here]]
    factor = factor.repeat_interleave(block_size, dim=-1)[..., : masked.shape[-1]]
    of_tokens = weighting.of_tokens(masked, block_size)
    return factor if of_tokens is None else factor * of_tokens
