"""Weightings are those of their papers, whatever the estimator."""

from __future__ import annotations

import math

import pytest
import torch
from estimates import assert_mean, expected_weighted_loss, noise_of, values_of
from toy import random_tokens, toy_model

from hybrid.data.batches import Batch
from hybrid.objectives import ObjectiveConfig, build_objective
from hybrid.objectives.build import build_estimator
from hybrid.objectives.estimators import Count, Time
from hybrid.objectives.weightings import WEIGHTINGS, Bert, Cart, MaskGIT, PlainCrossEntropy


@pytest.mark.parametrize("name", sorted(WEIGHTINGS))
@pytest.mark.parametrize("estimator", [Count(), Count("published", True), Time(), None], ids=str)
def test_a_weighting_has_its_expectation_under_every_estimator(name, estimator):
    """sum_n omega_n E[m_n], masks enumerated; None is the weighting's own proposal."""
    weighting = WEIGHTINGS[name]() if name != "cart" else PlainCrossEntropy()
    if estimator is None:
        estimator = build_estimator(ObjectiveConfig(weighting=name))
        assert isinstance(estimator, Count)
        assert torch.equal(estimator.source.probabilities(4, 4), weighting.probabilities(4, 4))
    model, tokens = toy_model(vocab=4), random_tokens(2, 4, vocab=4)
    omega = weighting.of_counts(4)
    assert float(omega.sum()) == pytest.approx(4) and omega[0] == 0

    def weight(n):  # of each of the C(4, n) masks of n tokens
        return float(omega[n]) / (n * math.comb(4, n))

    expected, _ = expected_weighted_loss(model, tokens, 4, weight)
    assert_mean(values_of(estimator, model, tokens, 4, 8000, False, weighting), expected)


def test_weightings_are_those_of_their_papers():
    """Mask-Predict: the sum of cross-entropies, so omega ~ n. MaskGIT: n = ceil(cos(pi u / 2) L), by simulation
    (chi-square-like: each of 8 frequencies of 200,000 draws within 5 standard deviations, false alarm 5e-6). BERT: one
    number of tokens."""
    assert PlainCrossEntropy().of_counts(3).tolist() == pytest.approx([0, 0.5, 1, 1.5])
    u = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = torch.bincount((torch.cos(math.pi / 2 * u) * 8).ceil().long(), minlength=9) / len(u)
    p = MaskGIT().probabilities(8, 8)
    assert ((drawn - p).abs() <= 5 * (p * (1 - p) / len(u)).sqrt()).all()
    assert torch.equal(MaskGIT().of_counts(8), 8 * p)
    assert [int(Bert().of_counts(n).argmax()) for n in (1, 3, 4, 10, 11, 17)] == [1, 1, 1, 2, 2, 3], "rounded"
    assert Bert().of_counts(20).nonzero().tolist() == [[3]] and Bert().of_counts(4).tolist() == [0, 4, 0, 0, 0]


def test_cart_weighs_by_the_distance_to_what_is_known():
    """By hand: blocks of 3; tokens 1 and 5 are known in draw 0. Known are also all tokens of earlier blocks."""
    masked = torch.ones(1, 1, 6, dtype=torch.bool)
    masked[0, 0, [1, 5]] = False
    got = Cart(p=0.3).of_tokens(masked, 3)[0, 0]

    def geometric(distance):
        return 0.5 * 0.3 * 0.7 ** (distance - 1)

    assert float(got[0]) == pytest.approx(geometric(1))
    assert float(got[2]) == pytest.approx(geometric(1)), "a later block is not seen"
    assert float(got[3]) == pytest.approx(sum(map(geometric, (1, 2, 3))) + geometric(2))
    assert float(got[4]) == pytest.approx(sum(map(geometric, (2, 3, 4))) + geometric(1))
    assert (Cart().of_tokens(torch.ones(1, 1, 3, dtype=torch.bool), 3) == 0).all(), "nothing is known"


@pytest.mark.parametrize("name", sorted(WEIGHTINGS))
def test_what_is_trained_has_the_weights(name):
    """Two draws of blocks of four, n from the weighting's own proposal: omega_n / pi(n) times the mean loss of the n
    masked tokens of a block; of CART each token by itself."""
    objective = build_objective(ObjectiveConfig(weighting=name, draws=2))
    model, tokens = toy_model(), random_tokens(3, 8)
    everything = torch.ones_like(tokens, dtype=torch.bool)
    got = objective.loss(model, Batch(tokens, everything), noise_of(3), 4)
    masked = got.masking.masked
    factors = torch.zeros(masked.shape, dtype=torch.float64)
    omega, pi = WEIGHTINGS[name]().of_counts(4), objective.estimator.source.probabilities(4, 4)
    for place in masked.nonzero().tolist():
        row, draw, position = place
        n = int(masked[row, draw, position // 4 * 4 :][:4].sum())
        factors[row, draw, position] = omega[n] / pi[n] / n
    if name == "cart":
        factors = factors * Cart().of_tokens(masked, 4)
    assert float(got.total.detach()) == pytest.approx(float((factors[masked] * got.cross_entropy).sum()) / 2)
