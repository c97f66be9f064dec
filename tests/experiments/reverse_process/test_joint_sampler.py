"""Three samplers of one step against their exact laws."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from hybrid.experiments.reverse_process.ancestral_law import chi_square
from hybrid.experiments.reverse_process.joint_sampler import (
    FLOAT32,
    FLOAT64,
    HORIZON,
    Joint,
    Precision,
    argmax_reveal,
    decoupled,
    entropy_of_counts,
    entropy_of_law,
    joint_law,
    on_grid,
    simulate,
    truncated,
    untouched,
)

ALARM = 1e-6
"""Probability of a false alarm of each chi-square test; about 20 are made in this file, so 2e-5 in all."""


PROBS = np.array([0.9, 0.09, 0.009, 0.0009, 0.0001])


LOG_PROBS = torch.from_numpy(PROBS).log()[None]


TINY = 2.0**-14
"""An unmasking probability at which the two rarest tokens of PROBS, pi = 5.5e-8 and 6e-9, are below the grid of
float32, 6e-8."""


def fits(counts: torch.Tensor, draws: float, law: np.ndarray) -> float:
    """Chi-square probability of the counts of each token and, as one more outcome, of no token."""
    outcomes = torch.cat([counts, torch.tensor([round(draws) - int(counts.sum())])])
    return chi_square(outcomes, torch.from_numpy(np.append(law, 1 - law.sum())))


def plain(law: np.ndarray, q: float, draws: int, dtype: torch.dtype, bits: int) -> torch.Tensor:
    """Counts of the plain argmax over all tokens and MASK, its uniforms rounded down to `bits`."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(draws, len(law) + 1, generator=generator, dtype=torch.float64)
    uniform = (torch.floor(uniform * 2**bits) / 2**bits).to(dtype)
    log_probs = torch.from_numpy(law).log().to(dtype).expand(draws, -1)
    return torch.bincount(argmax_reveal(log_probs, q, uniform)[1], minlength=len(law))


def test_the_published_figures_are_those_of_the_truncated_gumbel() -> None:
    """Zheng et al. 2409.02908, section 5: rates 0.88 / 0.64 / 0.44, entropies 6.90 / 5.31 / 3.91, of 7.57."""
    probs = 1 / np.arange(1, 50_258)
    probs /= probs.sum()
    assert entropy_of_law(probs) == pytest.approx(7.57, abs=0.005)
    for q, rate, entropy in [(1 / 64, 0.88, 6.90), (1 / 1024, 0.64, 5.31), (1 / 10_000, 0.44, 3.91)]:
        law = joint_law(probs, q, truncated, points=200)
        assert law.sum() / q == pytest.approx(rate, abs=0.005)
        assert entropy_of_law(law) == pytest.approx(entropy, abs=0.01)


def test_without_rounding_the_joint_law_is_the_truth() -> None:
    for q in (0.3, 1e-4):
        assert joint_law(PROBS, q, untouched) == pytest.approx(q * PROBS, rel=1e-4)
        assert joint_law(PROBS, q, lambda x: on_grid(x, 53)) == pytest.approx(q * PROBS, rel=1e-4)


@pytest.mark.parametrize("q", [0.05, 0.5])
@pytest.mark.parametrize("bits", [7, 10])
def test_the_plain_argmax_follows_the_law_of_its_grid(bits: int, q: float) -> None:
    """A coarse grid shows the effect at unmasking probabilities that are cheap to simulate."""
    draws = 500_000
    law = joint_law(PROBS, q, lambda x: on_grid(x, bits), points=20_000)
    assert fits(plain(PROBS, q, draws, torch.float64, bits), draws, law) > ALARM
    if q == 0.05:
        assert fits(plain(PROBS, q, draws, torch.float64, bits), draws, q * PROBS) < 1e-9, "the truth is another law"


def test_leaving_out_hopeless_uniforms_does_not_change_the_law() -> None:
    """The short way, as it is used for small q, against the plain argmax on the same coarse grid, both as counts."""
    q, bits, draws = 0.03, 10, 500_000
    assert HORIZON * q < 1, "the short way is taken"
    short = simulate(Joint(Precision(torch.float64, bits)), LOG_PROBS, q, round(draws * q), seed=1)
    whole = plain(PROBS, q, draws, torch.float64, bits)
    assert fits(short, draws, joint_law(PROBS, q, lambda x: on_grid(x, bits), points=20_000)) > ALARM
    difference = (short - whole).double() / (short + whole).clamp(min=1).double().sqrt()  # nearly standard normal
    assert difference.abs().max() < 5.5  # false alarm below 5 x 4e-8


def test_float32_deviates_as_computed_and_float64_does_not() -> None:
    n = 200_000
    law = joint_law(PROBS, TINY, on_grid, points=20_000)
    assert law[-1] < 0.01 * TINY * PROBS[-1], "the rarest token disappears"
    float32, float64 = (simulate(Joint(p), LOG_PROBS, TINY, n, seed=0) for p in (FLOAT32, FLOAT64))
    assert fits(float32, n / TINY, law) > ALARM
    assert fits(float64, n / TINY, TINY * PROBS) > ALARM
    assert fits(float32, n / TINY, TINY * PROBS) < 1e-9, "the truth is another law"


@pytest.mark.parametrize("q", [TINY, 0.01, 0.5, 1.0])
def test_the_decoupled_sampler_has_the_true_rates(q: float) -> None:
    n = round(min(50_000, 4_000_000 * q))
    counts = simulate(decoupled, LOG_PROBS, q, n, seed=0)
    if q < 1:
        assert fits(counts, n / q, q * PROBS) > ALARM
    else:
        assert int(counts.sum()) == n, "the last step reveals what is left"
    assert chi_square(counts, torch.from_numpy(PROBS)) > ALARM


@pytest.mark.parametrize(
    "sampler", [Joint(FLOAT32), Joint(FLOAT64), decoupled], ids=["float32", "float64", "decoupled"]
)
@pytest.mark.parametrize("q", [0.02, 0.5])
def test_every_draw_follows_the_law_that_it_names(sampler: Callable, q: float) -> None:
    """Two laws in one call, in turn: the tokens of each follow its own, and all are revealed with probability q."""
    log_probs = torch.stack([LOG_PROBS[0], LOG_PROBS[0].flip(0)])
    law = torch.arange(400_000) % 2
    draw, token = sampler(log_probs, law, q, torch.Generator().manual_seed(0))
    assert len(draw.unique()) == len(draw)
    for which in (0, 1):
        counts = torch.bincount(token[law[draw] == which], minlength=5)
        assert fits(counts, 200_000, q * log_probs[which].exp().numpy()) > ALARM


def test_the_estimate_of_an_entropy() -> None:
    """Uniform over 200 tokens, 1,000 drawn: the plug-in entropy is low by 0.1, this one by less than 0.01 (the standard
    deviation of one estimate is 0.01, of the mean of 100 it is 0.001)."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.bincount(torch.randint(200, (1000,), generator=generator), minlength=200) for _ in range(100)]
    assert np.mean([entropy_of_counts(counts) for counts in drawn]) == pytest.approx(math.log(200), abs=0.01)
    assert math.isnan(entropy_of_counts(torch.zeros(3)))
