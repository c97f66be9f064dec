"""The noise of estimators is what enumeration says."""

from __future__ import annotations

import itertools

import pytest
import torch
from toy import random_tokens, toy_model

from hybrid.data.batches import Batch
from hybrid.experiments.measuring.gradient_noise import (
    _summary,
    gradient_norms,
    repeat,
)
from hybrid.likelihoods import Rows
from hybrid.likelihoods.enumerated import enumerated_bound, mask_table
from hybrid.objectives.cross_entropy import MaskedCrossEntropy, masked_loss
from hybrid.objectives.estimators import Count, Masking
from hybrid.objectives.noise import NoiseKeys


def batch_of(rows: int, length: int, seed: int = 0) -> Batch:
    tokens = random_tokens(rows, length, seed=seed)
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))


@pytest.mark.slow
def test_mean_and_variance_are_the_enumerated_ones():
    """One block of 3 tokens: every n and every set. Two draws halve the variance of one. 800 repeats: the mean within
    4.5 standard errors (false alarm 7e-6), the variance within 25%."""
    model, batch = toy_model(), batch_of(1, 3)
    with torch.no_grad():
        ((block, target),) = mask_table(model, Rows.of(batch.tokens, batch.is_target), 3)
    bound = float(enumerated_bound(block, target)) / 3
    losses, squares, signal = repeat(model, batch, Count(), False, 3, 800, seed=0)
    assert abs(float(losses.mean()) - bound) < 4.5 * float(losses.std()) / 800**0.5
    sizes = torch.tensor([bin(s).count("1") for s in range(8)])
    means = -block[0].sum(-1) / sizes.clamp(min=1)
    second = sum(float((means[sizes == n] ** 2).mean()) for n in (1, 2, 3)) / 3
    variance = (second - bound**2) / 2
    assert 0.75 < float(losses.var()) / variance < 1.25
    assert signal > 0 and (squares > 0).all()


@pytest.mark.parametrize("repeats", [2, 3])
def test_the_signal_is_that_of_the_expected_gradient_without_the_noise_of_its_mean(repeats):
    """The mean of g_i g_j over pairs of different repeats has that expectation, |E g|^2; and it is the same number."""
    model, batch = toy_model(), batch_of(2, 6)
    losses, squares, signal = repeat(model, batch, Count(), True, 3, repeats, seed=5)
    gradients = []
    for step in range(repeats):
        loss = (
            MaskedCrossEntropy(Count(), draws=2).loss(model, batch, NoiseKeys(5, step, torch.arange(2), 0, 2), 3).total
            / 12
        )
        assert float(losses[step]) == pytest.approx(float(loss.detach()))
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    pairs = [float(a @ b) for a, b in itertools.permutations(gradients, 2)]
    assert signal == pytest.approx(sum(pairs) / len(pairs), rel=1e-6)
    mean = sum(gradients) / repeats
    assert squares.tolist() == pytest.approx([float((g - mean) @ (g - mean)) for g in gradients])


def test_a_summary_by_hand():
    """Losses 1, 2, 3, 6: mean 3, squared distances 4, 1, 0, 9."""
    losses = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    squares = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    got = _summary("count", 4, False, losses, squares, 0.5, 2.0)
    variance = 14 / 3
    assert (got.mean, got.loss_variance, got.gradient_variance) == pytest.approx((3.0, variance, 10 / 3))
    assert got.stderr == pytest.approx((variance / 4) ** 0.5)
    assert got.deviation == pytest.approx((3.0 - 2.0) / got.stderr)
    assert got.loss_variance_error == pytest.approx((sum((s - 3.5) ** 2 for s in (4, 1, 0, 9)) / 3 / 4) ** 0.5)
    assert got.gradient_variance_error == pytest.approx((5 / 3 / 4) ** 0.5)


def test_gradient_norms_are_those_of_the_losses_by_count():
    """One block of two tokens, both masked: nothing is random but which of the rows is taken."""
    model, batch = toy_model(), batch_of(2, 2)
    norms = gradient_norms(model, batch, 2, seed=0)
    squares = []
    for row in range(2):
        everything = torch.ones(1, 1, 2, dtype=torch.bool)
        loss = masked_loss(model, batch.tokens[row : row + 1], Masking(everything, everything * 0.5), 2).total
        squares.append(sum(float((g**2).sum()) for g in torch.autograd.grad(loss, list(model.parameters()))))
    assert norms[1] == pytest.approx((sum(squares) / 2) ** 0.5)
    assert norms[0] > 0 and norms[0] != pytest.approx(norms[1])
