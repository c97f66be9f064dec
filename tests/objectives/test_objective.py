"""The ELBO: exact at block size 1, unbiased at all others, both forms the same."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from estimates import adaptive, assert_mean, expected_weighted_loss, gauss_legendre, keys, values_of
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import MODES, nll_of, random_tokens, toy_model

from hybrid.data.dataset import Batch
from hybrid.likelihoods import Rows
from hybrid.likelihoods.enumerated import mask_table
from hybrid.model.two_stream import two_stream_hidden
from hybrid.objectives import ESTIMATORS, Objective, ObjectiveConfig
from hybrid.objectives.cross_entropy import Loss, masked_loss
from hybrid.objectives.estimators import Clipped, Count, Masking, Time
from hybrid.objectives.noise import NoiseKeys, block_uniforms, position_uniforms, target_ranks
from hybrid.objectives.objective import build_estimator
from hybrid.objectives.schedules import SCHEDULES
from hybrid.objectives.weightings import MaskGIT, PlainCrossEntropy
from hybrid.options import build


@pytest.mark.parametrize("mode", MODES)
def test_block_size_one_is_the_autoregressive_cross_entropy(mode):
    """The same number whatever the noise, and equal to the sum of the log-probabilities of the next token."""
    model = toy_model(*mode)
    tokens = random_tokens(3, 9)
    everything = torch.ones_like(tokens, dtype=torch.bool)
    losses = [
        float(masked_loss(model, tokens, Count().draw(keys(3, step), everything, 1, 1, True), 1).total.detach())
        for step in range(4)
    ]
    assert len(set(losses)) == 1, "no noise is left at block size 1"
    log_probs = torch.stack(
        [
            model.head(_next_hidden(model, tokens, position)).log_softmax(-1).gather(1, tokens[:, position, None])[:, 0]
            for position in range(9)
        ]
    )
    assert losses[0] == pytest.approx(-float(log_probs.detach().sum()), abs=1e-10)


def _next_hidden(model, tokens, position):
    """State that predicts `position` from the tokens before it, in a forward of its own."""

    cut = tokens[:, : position + 1]
    masked = torch.zeros(len(tokens), 1, position + 1, dtype=torch.bool)
    masked[..., -1] = True
    return two_stream_hidden(model, cut, masked, 1)


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
    "uniform", {"name": "power", "exponent": -1.5}, {"name": "explicit", "weights": [1.0, 5.0, 2.0, 0.5]}, adaptive(),
    MaskGIT(),
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
    assert not Objective(estimator).is_elbo and Objective(Time()).is_elbo


@pytest.mark.parametrize("block_size", [1, 3, 5])
def test_complementary_draws_mask_every_token_once(block_size):
    is_target = torch.rand(8, 10, generator=torch.Generator().manual_seed(0)) < 0.7
    masking = Count(complementary=True).draw(keys(8), is_target, block_size, 4, True)
    if block_size == 1:
        assert torch.equal(masking.masked, is_target[:, None]), "nothing is random, one draw is enough"
        return
    first, second = masking.masked[:, 0::2], masking.masked[:, 1::2]
    assert torch.equal(first ^ second, is_target[:, None].expand(-1, 2, -1)) and not (first & second).any()
    with pytest.raises(ValueError, match=r"objective.draws: 3 is odd"):
        Count(complementary=True).draw(keys(8), is_target, block_size, 3, True)


@pytest.mark.parametrize("prediction", ["in_place", "next_token"])
def test_the_autoregressive_loss_shares_the_clean_pass(prediction):
    """Its value is the exact NLL, the ELBO part is as without it, and both gradients add up; documents included."""
    model = toy_model("causal", prediction)
    tokens = random_tokens(3, 10)
    is_target = torch.rand(3, 10, generator=torch.Generator().manual_seed(1)) < 0.8
    documents = (torch.arange(10) >= 6).long().expand(3, -1)
    batch = Batch(tokens, is_target, documents)

    def gradient(total):
        parameters = list(model.parameters())
        return torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters)])

    alone = Objective(Count(), draws=2).loss(model, batch, keys(3), 4)
    both = Objective(Count(), draws=2, ar_weight=0.5).loss(model, batch, keys(3), 4)
    exact = Objective(Count()).loss(model, batch, keys(3), 1)
    torch.testing.assert_close(both.total, alone.total)
    torch.testing.assert_close(both.autoregressive, exact.total)
    torch.testing.assert_close(
        gradient(both.total + 0.5 * both.autoregressive), gradient(alone.total) + 0.5 * gradient(exact.total)
    )
    assert Objective(Count(), ar_weight=0.5).loss(model, batch, keys(3), 1).autoregressive is None


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_only_targets_are_masked(name):
    estimator = ESTIMATORS[name]()
    is_target = torch.rand(16, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    masking = estimator.draw(keys(16), is_target, 5, 3, True)
    assert not masking.masked[~is_target[:, None].expand(-1, 3, -1)].any()
    assert masking.masked.any()


def test_a_prompt_is_given_and_its_answer_scored():
    """With is_target, the count form is the bound of the answer given the prompt tokens of its own block."""
    model, tokens = toy_model(vocab=4), random_tokens(2, 4, vocab=4)
    is_target = torch.tensor([[False, True, False, True]] * 2)
    got = nll_of(model, tokens, 4, draws="all", is_target=is_target).nll
    (table, _), *_ = mask_table(model, Rows.of(tokens), 4)
    both, first, second = 0b1010, 0b0010, 0b1000
    by_hand = -(table[:, first, 1] + table[:, second, 3]) / 2 - (table[:, both, 1] + table[:, both, 3]) / 2
    torch.testing.assert_close(got, by_hand)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 3), st.integers(0, 5))
def test_count_masks_as_many_as_it_weighs(length, block_size, draws, step):
    """n in 1..L tokens per block, weight L/n each: the weights of a block sum to L exactly."""
    block_size = min(block_size, length)
    everything = torch.ones(4, length, dtype=torch.bool)
    masking = Count().draw(keys(4, step), everything, block_size, draws, True)
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


def test_losses_by_count_are_those_of_the_masks():
    model, tokens = toy_model(), random_tokens(3, 10)
    masking = Count().draw(keys(3), torch.ones_like(tokens, dtype=torch.bool), 4, 2, True)
    loss = masked_loss(model, tokens, masking, 4)
    sums, counts = loss.by_count(4)
    assert counts.sum() == 3 * 2 * 3
    assert counts[0] == 0
    # L m_n summed over blocks is the loss again; blocks of 4, 4 and 2 tokens.
    losses = torch.zeros(masking.masked.shape, dtype=torch.float64)
    losses[masking.masked] = loss.cross_entropy
    by_hand = [[], [], [], [], []]
    for row, draw, block in itertools.product(range(3), range(2), range(3)):
        part = masking.masked[row, draw, 4 * block : 4 * block + 4]
        by_hand[int(part.sum())].append(float(losses[row, draw, 4 * block : 4 * block + 4][part].mean()))
    for n in range(1, 5):
        assert counts[n] == len(by_hand[n])
        assert float(sums[n]) == pytest.approx(sum(by_hand[n]))


def test_the_schedule_key_reaches_the_time_form():
    assert build_estimator(ObjectiveConfig(estimator="time", schedule="cosine_md4")) == Time("cosine_md4")
    own = {"name": "time", "schedule": "linear"}
    assert build_estimator(ObjectiveConfig(estimator=own, schedule="cosine_md4")) == Time("linear")
    with pytest.raises(ValueError, match=r"objective.estimator: 'cuont' is not one of .*'count'"):
        build_estimator(ObjectiveConfig(estimator="cuont"))


def test_cross_entropy_is_torchs():
    model, tokens = toy_model(), random_tokens(2, 5)
    masked = torch.ones(2, 1, 5, dtype=torch.bool)
    from hybrid.model.two_stream import two_stream_hidden

    loss = masked_loss(model, tokens, Masking(masked, masked.double()), 5)
    expected = F.cross_entropy(
        model.head(two_stream_hidden(model, tokens, masked, 5)), tokens.flatten(), reduction="sum"
    )
    torch.testing.assert_close(loss.total, expected)


@pytest.mark.parametrize("stratified", [True, False])
def test_counts_and_times_are_those_of_the_uniforms_of_their_blocks(stratified):
    """n = 1 + floor(4 u) of four tokens, those of least rank; a time t = 1 - u, and every token below it on its own."""
    noise, everything = keys(6), torch.ones(6, 8, dtype=torch.bool)
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


def test_losses_by_block_and_by_count_by_hand():
    """Two draws of one row of five tokens in blocks of three; the last block is short."""
    masked = torch.tensor([[[True, False, True, False, True], [False, False, False, True, True]]])
    loss = Loss(torch.tensor(0.0), torch.tensor([1.0, 3.0, 5.0, 2.0, 8.0]), Masking(masked, masked.double()))
    n, mean = loss.by_block(3)
    assert n.tolist() == [[[2, 1], [0, 2]]] and mean.tolist() == [[[2.0, 5.0], [0.0, 5.0]]]
    sums, counts = loss.by_count(3)
    assert sums.tolist() == [0.0, 5.0, 7.0, 0.0] and counts.tolist() == [1, 1, 2, 0]
    is_target = torch.tensor([[True, True, True, True, True]])
    targets, n, weighted = Objective(Count(), PlainCrossEntropy()).observed(loss, is_target, 3)
    assert targets.tolist() == [[[3, 2], [3, 2]]]  # omega of 3 targets: 1/2, 1, 3/2; of 2: 2/3, 4/3
    assert weighted.flatten().tolist() == pytest.approx([2.0, 5 * 2 / 3, 0.0, 5 * 4 / 3])
    assert Objective(Count()).observed(loss, is_target, 3)[2].tolist() == mean.tolist()


def test_a_loss_is_a_mean_over_draws_and_documents_are_kept_apart():
    """At block size 1 nothing is random; draws of a longer block are those that `Bound` averages."""
    model, tokens = toy_model(), random_tokens(3, 8)
    everything = torch.ones_like(tokens, dtype=torch.bool)
    documents = (torch.arange(8) >= 4).long().expand(3, -1)
    for of in (None, documents):
        batch = Batch(tokens, everything, of)
        noise = NoiseKeys.of_rows(0, torch.arange(3))
        got = Objective(Count(), draws=5).loss(model, batch, noise, 4).total
        expected = nll_of(model, tokens, 4, draws=5, keys=torch.arange(3), documents=of).nll.sum()
        torch.testing.assert_close(got, expected)
    apart, joined = (
        Objective(Count()).loss(model, Batch(tokens, everything, of), keys(3), 1) for of in (documents, None)
    )
    halves = [nll_of(model, part, 1, "exact").nll.sum() for part in (tokens[:, :4], tokens[:, 4:])]
    torch.testing.assert_close(apart.total, sum(halves))
    assert abs(float((joined.total - apart.total).detach())) > 0.1
