"""Estimators of the ELBO: unbiased, both forms the same, drawn in parts as in one."""

from __future__ import annotations

import pytest
import torch
from estimates import assert_mean, expected_weighted_loss, gauss_legendre, noise_of, values_of
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import nll_of, random_tokens, toy_model

from hybrid.objectives.cross_entropy import MaskedCrossEntropy
from hybrid.objectives.estimators import ESTIMATORS, Clipped, Count, Time
from hybrid.objectives.noise import NoiseKeys, block_uniforms, position_uniforms, target_ranks
from hybrid.objectives.schedules import SCHEDULES
from hybrid.objectives.weightings import MaskGIT
from hybrid.options import build


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_time_form_has_the_expectation_of_the_count_form(name):
    """V = 3, L = 4: enumerate the masks, integrate over t. Every schedule gives sum_n E[m_n]."""
    schedule = build(SCHEDULES, {"name": name, "power": 0.5} if name == "polynomial" else name, "schedule")
    model, tokens = toy_model(vocab=3), random_tokens(3, 4, vocab=3)
    nodes, weights = gauss_legendre(400)
    # Integrate in s = sqrt(t): the square-root schedule has an infinite slope at 0.
    t, dt = nodes**2, weights * 2 * nodes
    p, rate = schedule.one_minus_alpha(t), -schedule.derivative(t)

    def weight(n):  # integral of weight(t) * P(a given mask of n tokens | t)
        return float((dt * rate / p * p**n * (1 - p) ** (4 - n)).sum())

    total, bound = expected_weighted_loss(model, tokens, 4, weight)
    torch.testing.assert_close(total, bound, rtol=1e-6, atol=0)


PROPOSED = [
    "uniform", {"name": "power", "exponent": -1.5}, {"name": "explicit", "weights": [1.0, 5.0, 2.0, 0.5]}, MaskGIT(),
]  # fmt: skip


COUNTS = [Count(proposal, complementary) for proposal in PROPOSED for complementary in (False, True)]


@pytest.mark.parametrize("estimator", [*COUNTS, *(Time(name) for name in sorted(SCHEDULES))], ids=str)
@pytest.mark.parametrize("stratified", [False, True])
def test_estimators_are_unbiased(estimator, stratified):
    """Mean over 8,000 draws against the enumerated bound.

    Draws of `NoiseKeys.of_rows` are independent, so their spread gives the error; the tail of the time form is heavy
    but bounded here by t >= 2^-53, and its error is estimated from the same draws.
    """
    model, tokens = toy_model(vocab=4), random_tokens(2, 6, vocab=4)
    expected = nll_of(model, tokens, 4, draws="all").nll
    assert_mean(values_of(estimator, model, tokens, 4, 8000, stratified), expected)


def test_the_clipped_interval_is_biased_as_it_says():
    """Its mean is the integral over the interval, which is not the bound (by quadrature over t)."""
    estimator = Clipped(low=0.3, high=0.8)
    model, tokens = toy_model(vocab=4), random_tokens(2, 4, vocab=4)
    nodes, weights = gauss_legendre(40)
    t, dt = 0.3 + 0.5 * nodes, weights  # an average over the interval

    def weight(n):
        return float((dt / t * t**n * (1 - t) ** (4 - n)).sum())

    expected, bound = expected_weighted_loss(model, tokens, 4, weight)
    assert_mean(values_of(estimator, model, tokens, 4, 8000, False), expected)
    assert ((expected - bound).abs() > 0.1 * bound).any()
    assert not MaskedCrossEntropy(estimator).is_elbo and MaskedCrossEntropy(Time()).is_elbo


@pytest.mark.parametrize("block_size", [1, 3, 5])
def test_complementary_draws_mask_every_token_once(block_size):
    is_target = torch.rand(8, 10, generator=torch.Generator().manual_seed(0)) < 0.7
    masking = Count(complementary=True).draw(noise_of(8), is_target, block_size, 4, True)
    if block_size == 1:
        assert torch.equal(masking.masked, is_target[:, None]), "nothing is random, one draw is enough"
        return
    first, second = masking.masked[:, 0::2], masking.masked[:, 1::2]
    assert torch.equal(first ^ second, is_target[:, None].expand(-1, 2, -1)) and not (first & second).any()
    with pytest.raises(ValueError, match=r"objective.draws: 3 is odd"):
        Count(complementary=True).draw(noise_of(8), is_target, block_size, 3, True)


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_only_targets_are_masked(name):
    estimator = ESTIMATORS[name]()
    is_target = torch.rand(16, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    masking = estimator.draw(noise_of(16), is_target, 5, 3, True)
    assert not masking.masked[~is_target[:, None].expand(-1, 3, -1)].any()
    assert masking.masked.any()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 3), st.integers(0, 5))
def test_count_masks_as_many_as_it_weighs(length, block_size, draws, step):
    """n in 1..L tokens per block, weight L/n each: the weights of a block sum to L exactly."""
    block_size = min(block_size, length)
    everything = torch.ones(4, length, dtype=torch.bool)
    masking = Count().draw(noise_of(4, step), everything, block_size, draws, True)
    for start in range(0, length, block_size):
        stop = min(start + block_size, length)
        masked, weight = masking.masked[..., start:stop], masking.weight[..., start:stop]
        assert masked.any(-1).all()
        torch.testing.assert_close(
            (weight * masked).sum(-1), torch.full_like(masked[..., 0], stop - start, dtype=torch.float64)
        )


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_noise_of_a_batch_can_be_made_in_parts(name):
    """Two ranks, or two micro-batches, draw exactly what one process draws for the whole batch."""
    estimator = ESTIMATORS[name]()
    everything = torch.ones(6, 10, dtype=torch.bool)
    whole = estimator.draw(NoiseKeys(3, 7, torch.arange(6), 0, 6), everything, 4, 2, True)
    parts = [
        estimator.draw(NoiseKeys(3, 7, torch.arange(first, last), first, 6), everything[first:last], 4, 2, True)
        for first, last in ((0, 2), (2, 6))
    ]
    assert torch.equal(whole.masked, torch.cat([p.masked for p in parts]))
    assert torch.equal(whole.weight, torch.cat([p.weight for p in parts]))
    assert not torch.equal(whole.masked[0], whole.masked[1]), "rows differ"
    assert not torch.equal(
        whole.masked, estimator.draw(NoiseKeys(3, 8, torch.arange(6), 0, 6), everything, 4, 2, True).masked
    )


@pytest.mark.parametrize("stratified", [True, False])
def test_counts_and_times_are_those_of_the_uniforms_of_their_blocks(stratified):
    """n = 1 + floor(4 u) of four tokens, those of least rank; a time t = 1 - u, and every token below it on its own."""
    noise, everything = noise_of(6), torch.ones(6, 8, dtype=torch.bool)
    u = block_uniforms(noise, 2, 3, stratified)  # (b, D, g)
    ranks = target_ranks(noise, everything, 4, 3)
    masking = Count().draw(noise, everything, 4, 3, stratified)
    n = 1 + (4 * u).floor()
    assert torch.equal(masking.masked, (ranks < n[..., None]).flatten(2))
    assert torch.equal(masking.weight.unflatten(-1, (2, 4)), (4 / n)[..., None].expand(6, 3, 2, 4))
    timed = Time().draw(noise, everything, 4, 3, stratified)
    t = (1 - u).repeat_interleave(4, -1)
    assert torch.equal(timed.masked, position_uniforms(noise, 8, 3) < t)
    torch.testing.assert_close(timed.weight, 1 / t)
    assert not torch.equal(u, block_uniforms(noise, 2, 3, not stratified))
