"""Divergences, summed by hand, and the student that each of them is least for."""

from __future__ import annotations

import math

import pytest
import torch

from hybrid.objectives.divergences import DIVERGENCES

P, Q = [0.7, 0.2, 0.1], [0.1, 0.3, 0.6]

BY_HAND = {
    "kl_forward": sum(p * math.log(p / q) for p, q in zip(P, Q, strict=True)),
    "kl_reverse": sum(q * math.log(q / p) for p, q in zip(P, Q, strict=True)),
    "mse": sum(math.log(p / q) ** 2 for p, q in zip(P, Q, strict=True)) / 3,
    "tv": (0.6 + 0.1 + 0.5) / 2,
}


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
@pytest.mark.parametrize("without", [[], [1]], ids=["all ids", "an id without probability"])
def test_divergences_are_sums_over_the_vocabulary(name: str, without: list[int]) -> None:
    """An id that neither can show changes nothing, not even a gradient into NaN."""
    p, q = ([*row[:1], *(0.0 for _ in without), *row[1:]] for row in (P, Q))
    logits = torch.tensor(q, dtype=torch.float64).log().requires_grad_()
    log_p = torch.tensor([p], dtype=torch.float64).log()
    got = DIVERGENCES[name](log_p, logits.log_softmax(-1)[None])
    torch.testing.assert_close(got.detach(), torch.tensor([BY_HAND[name]], dtype=torch.float64))
    assert torch.autograd.grad(got.sum(), logits)[0].isfinite().all()
    torch.testing.assert_close(DIVERGENCES[name](log_p, log_p), torch.zeros(1, dtype=torch.float64))


def test_the_total_variation_is_that_of_probabilities():
    """Distributions that share no token are 1 apart, however small their smallest probabilities are."""
    tiny = 1e-30
    log_p, log_q = (torch.tensor([row], dtype=torch.float64).log() for row in ([1.0, tiny], [tiny, 1.0]))
    torch.testing.assert_close(DIVERGENCES["tv"](log_p, log_q), torch.ones(1, dtype=torch.float64))


@pytest.mark.parametrize("name", ["kl_forward", "kl_reverse"])
def test_the_best_student_of_several_targets(name: str) -> None:
    """Their mean, or their geometric mean: no distribution of a fine grid is better."""
    targets = torch.tensor([P, Q, [0.3, 0.3, 0.4]], dtype=torch.float64)
    best = targets.mean(0) if name == "kl_forward" else targets.log().mean(0).softmax(-1)

    def mean_divergence(students: torch.Tensor) -> torch.Tensor:
        return DIVERGENCES[name](targets.log()[:, None], students.log()).mean(0)

    grid = torch.cartesian_prod(*[torch.arange(1, 60, dtype=torch.float64)] * 2) / 60
    grid = torch.cat([grid, 1 - grid.sum(1, keepdim=True)], dim=1)
    grid = grid[grid[:, 2] > 1e-6]
    values = mean_divergence(grid)
    assert mean_divergence(best[None]) <= values.min()
    assert (grid[values.argmin()] - best).abs().max() < 1 / 60
