"""The proposal that learns: of least variance, with a state that can be kept."""

from __future__ import annotations

import math

import pytest
import torch
from estimates import adaptive, keys

from hybrid.objectives.estimators import Count
from hybrid.objectives.proposals import Adaptive, Explicit, Power, Uniform


@pytest.mark.parametrize("complementary", [False, True])
def test_adaptive_learns_the_proposal_of_least_variance(complementary):
    """Its variance comes close to that of pi ~ sqrt(E[m^2]) (with pairs: of q ~ sqrt(E[(m_S + m_S')^2])) on steep
    losses, and is well below that of the uniform one."""
    torch.manual_seed(0)
    size, steps = 8, 400
    mean = torch.linspace(0.2, 4.0, size + 1, dtype=torch.float64) ** 1.5
    mean[0] = 0

    def estimates(estimator, step):
        masking = estimator.draw(keys(16, step), torch.ones(16, 16, dtype=torch.bool), size, 2, False)
        n = masking.masked.unflatten(-1, (2, size)).sum(-1)
        losses = mean[n] * (1 + 0.3 * torch.randn(n.shape, dtype=torch.float64)) * (n > 0)
        weight = (masking.weight * masking.masked).unflatten(-1, (2, size)).sum(-1)
        return torch.full_like(n, size), n, losses, (weight * losses).mean(1)

    learner = Count({"name": "adaptive", "uniform": 0.05}, complementary)
    flat = Count("uniform", complementary)
    values, baseline = [], []
    for step in range(steps):
        targets, n, losses, value = estimates(learner, step)
        learner.learn(size, targets, n, losses)
        if step >= steps // 2:
            values.append(value)
            baseline.append(estimates(flat, step)[-1])
    values, baseline = torch.stack(values), torch.stack(baseline)
    n = torch.arange(size + 1)
    if complementary:
        square = (mean[n] + mean[size - n]) ** 2 + 0.09 * (mean[n] ** 2 + mean[size - n] ** 2)
        least = float(square.sqrt().sum() ** 2 / 4 - mean.sum() ** 2)
    else:
        least = float(((1.09 * mean**2).sqrt().sum() ** 2 - mean.sum() ** 2) / 2)
    # 6,400 values each: a relative error of the variance of about 2 to 4%.
    assert float(values.var()) < 1.25 * least
    assert float(values.var()) < 0.8 * float(baseline.var())
    assert abs(float(values.mean() - mean.sum())) < 4.5 * float(values.std()) / math.sqrt(values.numel())


def test_adaptive_keeps_its_state_and_forgets():
    proposal = adaptive()
    other = Adaptive(uniform=0.2)
    other.restore(proposal.state())
    assert torch.equal(other.probabilities(4, 4), proposal.probabilities(4, 4))
    assert torch.equal(other.probabilities(4, 8), Uniform().probabilities(4, 8)), "each block size for itself"
    assert float(proposal.probabilities(4, 4)[1:].min()) >= 0.2 / 4, "every count stays possible"
    n = torch.full((1,), 3)
    for _ in range(2000):
        other.learn(4, torch.full((1,), 4), n, torch.tensor([7.0]))
    squares, weight = other.moments[4]
    assert float((squares / weight)[other.bins(n, 4)]) == pytest.approx(49, rel=1e-4)


def test_an_observation_counts_half_after_the_half_life():
    """Losses 3 and 4 at n = 1 in the first step, 2 at n = 2 two steps later; 32 bins are steps of 8 of n / 4."""
    proposal = Adaptive(half_life=2.0, uniform=0.25)
    one = torch.tensor([1, 1])
    proposal.learn(4, torch.tensor([4, 4]), one, torch.tensor([3.0, 4.0]))
    proposal.learn(4, torch.tensor([4]), torch.tensor([3]), torch.tensor([5.0]))
    proposal.learn(4, torch.tensor([4]), torch.tensor([2]), torch.tensor([2.0]))
    squares, weight = proposal.moments[4]
    assert {n: float(squares[8 * n]) for n in (1, 2, 3)} == pytest.approx({1: 25 / 2, 2: 4.0, 3: 25 / 2**0.5})
    assert {n: float(weight[8 * n]) for n in (1, 2, 3)} == pytest.approx({1: 1.0, 2: 1.0, 3: 0.5**0.5})
    assert float(weight.sum()) == pytest.approx(2 + 0.5**0.5)
    rms = [12.5**0.5, 2.0, 5.0, 5.0]  # the last one is as far as is known
    expected = [0.0, *(0.75 * value / sum(rms) + 0.25 / 4 for value in rms)]
    assert proposal.probabilities(4, 4).tolist() == pytest.approx(expected)


def test_proposals_by_hand():
    assert Uniform().probabilities(4, 8).tolist() == [0, 0.25, 0.25, 0.25, 0.25]
    assert Power(2.0).probabilities(3, 3).tolist() == pytest.approx([0, 1 / 14, 4 / 14, 9 / 14])
    weights = Explicit([1.0, 5.0, 2.0, 8.0])
    assert weights.probabilities(4, 4).tolist() == pytest.approx([0, 1 / 16, 5 / 16, 2 / 16, 8 / 16])
    assert weights.probabilities(2, 4).tolist() == pytest.approx([0, 1 / 6, 5 / 6]), "the first of them"
    assert Uniform().probabilities(0, 4).tolist() == [1], "nothing to mask"


def test_a_pair_teaches_what_it_contributes():
    """Sets of 1 and 3 of four tokens: their sum, for both. Of all and none: that counts twice, for all."""
    learner = Count({"name": "adaptive", "half_life": 1e9}, complementary=True)
    n = torch.tensor([[[1, 4], [3, 0]]])
    losses = torch.tensor([[[0.5, 3.0], [2.0, 0.0]]], dtype=torch.float64)
    learner.learn(4, torch.full((1, 2, 2), 4), n, losses)
    squares, weight = learner.source.moments[4]
    assert {b: float(squares[8 * b]) for b in range(5)} == {0: 0.0, 1: 6.25, 2: 0.0, 3: 6.25, 4: 36.0}
    assert float(weight.sum()) == 3, "a half that masks nothing teaches nothing"
