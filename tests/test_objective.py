"""Noise and the ELBO: exact at block size 1, unbiased at all others, both forms the same, stratified without a tie."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import MODES, random_tokens, toy_model

from hybrid import counter
from hybrid.likelihood import enumerated_bound, mask_table, row_nll
from hybrid.noise import SCHEDULES, Keys, block_uniforms
from hybrid.objective import OBJECTIVES, Count, ObjectiveConfig, Time, build_estimator, masked_loss
from hybrid.options import build


def keys(rows: int, step: int = 0, total: int | None = None) -> Keys:
    return Keys(0, step, torch.arange(rows), 0, rows if total is None else total)


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
    from hybrid.streams import two_stream_hidden

    cut = tokens[:, : position + 1]
    masked = torch.zeros(len(tokens), 1, position + 1, dtype=torch.bool)
    masked[..., -1] = True
    return two_stream_hidden(model, cut, masked, 1)


def expected_weighted_loss(model, tokens, block_size, mask_probability):
    """sum over all masks of one block of P(mask, weights) * loss, given {(mask) -> mean weight * probability}."""
    (table, target), *_ = mask_table(model, tokens, block_size, None, torch.ones_like(tokens, dtype=torch.bool))
    total = torch.zeros(len(tokens), dtype=torch.float64)
    for subset in range(1, 2**block_size):
        n = bin(subset).count("1")
        total += mask_probability(n) * -table[:, subset].sum(-1)
    return total, enumerated_bound(table, target)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_time_form_has_the_expectation_of_the_count_form(name):
    """V = 3, L = 4: enumerate the masks, integrate over t. Every schedule gives sum_n E[m_n]."""
    schedule = build(SCHEDULES, {"name": name, "power": 0.5} if name == "polynomial" else name, "schedule")
    model, tokens = toy_model(vocab=3), random_tokens(3, 4, vocab=3)
    nodes, weights = _gauss_legendre(400)
    # Integrate in s = sqrt(t): the square-root schedule has an infinite slope at 0.
    t, dt = nodes**2, weights * 2 * nodes
    p, rate = schedule.masked(t), schedule.rate(t)

    def weight(n):  # integral of weight(t) * P(a given mask of n tokens | t)
        return float((dt * rate / p * p**n * (1 - p) ** (4 - n)).sum())

    total, bound = expected_weighted_loss(model, tokens, 4, weight)
    torch.testing.assert_close(total, bound, rtol=1e-6, atol=0)


def _gauss_legendre(n):
    import numpy as np

    x, w = np.polynomial.legendre.leggauss(n)
    return torch.tensor((x + 1) / 2), torch.tensor(w / 2)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedules_are_consistent(name):
    schedule = build(SCHEDULES, name, "schedule")
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(schedule.masked(t).sum(), t)
    torch.testing.assert_close(schedule.rate(t.detach()), slope)
    ends = schedule.masked(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("estimator", [Count(), *(Time(name) for name in sorted(SCHEDULES))], ids=str)
@pytest.mark.parametrize("stratified", [False, True])
def test_estimators_are_unbiased(estimator, stratified):
    """Mean over 8,000 draws against the enumerated bound, within 4.5 standard errors (false alarm 7e-6 a row).

    Draws of `Keys.of_rows` are independent, so their spread gives the error; the tail of the time form is heavy but
    bounded here by t >= 2^-53, and its error is estimated from the same draws.
    """
    model, tokens = toy_model(vocab=4), random_tokens(2, 6, vocab=4)
    everything = torch.ones_like(tokens, dtype=torch.bool)
    expected = row_nll(model, tokens, 4, draws="all").nll
    n = 8000
    masking = estimator.draw(Keys.of_rows(1, torch.arange(2)), everything, 4, n, stratified)
    tables = mask_table(model, tokens, 4, None, everything)
    values = torch.zeros(2, n, dtype=torch.float64)
    for (table, _), start in zip(tables, (0, 4), strict=True):
        size = table.shape[-1]
        masked, weight = (t[:, :, start : start + size] for t in (masking.masked, masking.weight))
        subset = (masked.long() << torch.arange(size)).sum(-1)
        losses = -table.gather(1, subset[..., None].expand(-1, -1, size))
        values += (losses * weight * masked).sum(-1)
    error = values.std(1) / math.sqrt(n)
    assert ((values.mean(1) - expected).abs() < 4.5 * error).all()
    assert (error < 0.1 * expected).all(), "the test would not notice a bias otherwise"


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_only_targets_are_masked(name):
    estimator = OBJECTIVES[name]()
    is_target = torch.rand(16, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    masking = estimator.draw(keys(16), is_target, 5, 3, True)
    assert not masking.masked[~is_target[:, None].expand(-1, 3, -1)].any()
    assert masking.masked.any()


def test_a_prompt_is_given_and_its_answer_scored():
    """With is_target, the count form is the bound of the answer given the prompt tokens of its own block."""
    model, tokens = toy_model(vocab=4), random_tokens(2, 4, vocab=4)
    is_target = torch.tensor([[False, True, False, True]] * 2)
    got = row_nll(model, tokens, 4, draws="all", is_target=is_target).nll
    (table, _), *_ = mask_table(model, tokens, 4, None, torch.ones_like(is_target))
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


def test_strata_cover_the_range_once_per_batch():
    u = block_uniforms(keys(6), 5, 2, True)
    assert sorted((u.flatten() * 60).long().tolist()) == list(range(60))


@pytest.mark.parametrize("rows", [1, 2])
def test_strata_are_not_tied_to_a_position(rows):
    """Over steps, the uniforms of each block of a batch of one or two rows fill [0, 1]: Kolmogorov-Smirnov, false alarm
    1e-6 per block (8 blocks, 2,000 steps)."""
    steps = 2000
    batches = [block_uniforms(Keys(0, s, torch.arange(rows), 0, rows), 8 // rows, 1, True) for s in range(steps)]
    draws = torch.stack([batch.flatten() for batch in batches])
    ordered = draws.sort(0).values
    grid = torch.arange(1, steps + 1, dtype=torch.float64)[:, None] / steps
    distance = torch.maximum((grid - ordered).abs(), (ordered - grid + 1 / steps).abs()).amax(0)
    assert (distance < math.sqrt(-math.log(1e-6 / 2) / (2 * steps))).all()
    assert (draws.sum(1) / 8).std() < 0.02, "within a batch they are spread evenly"


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_noise_of_a_batch_can_be_made_in_parts(name):
    """Two ranks, or two micro-batches, draw exactly what one process draws for the whole batch."""
    estimator = OBJECTIVES[name]()
    everything = torch.ones(6, 10, dtype=torch.bool)
    whole = estimator.draw(Keys(3, 7, torch.arange(6), 0, 6), everything, 4, 2, True)
    parts = [
        estimator.draw(Keys(3, 7, torch.arange(first, last), first, 6), everything[first:last], 4, 2, True)
        for first, last in ((0, 2), (2, 6))
    ]
    assert torch.equal(whole.masked, torch.cat([p.masked for p in parts]))
    assert torch.equal(whole.weight, torch.cat([p.weight for p in parts]))
    assert not torch.equal(whole.masked[0], whole.masked[1]), "rows differ"
    assert not torch.equal(
        whole.masked, estimator.draw(Keys(3, 8, torch.arange(6), 0, 6), everything, 4, 2, True).masked
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


def test_uniforms_are_uniform_and_independent_of_company():
    a = counter.uniform(0, counter.TOKEN, torch.arange(1000)[:, None], torch.arange(100))
    alone = counter.uniform(0, counter.TOKEN, torch.tensor([[7]]), torch.tensor([3]))
    assert alone.item() == a[7, 3].item()
    ordered = a.flatten().sort().values
    grid = torch.arange(1, 100_001, dtype=torch.float64) / 100_000
    assert (ordered - grid).abs().max() < 0.01, "Kolmogorov-Smirnov, false alarm below 1e-8"
    neighbours = torch.corrcoef(torch.stack([a[:, :-1].flatten(), a[:, 1:].flatten()]))[0, 1]
    assert abs(neighbours) < 0.02
    assert counter.uniform(0, counter.ORDER, torch.tensor([7]), torch.tensor([3])) != alone
    assert counter.uniform(1, counter.TOKEN, torch.tensor([7]), torch.tensor([3])) != alone


def test_row_keys_depend_on_content_and_tell_copies_apart():
    a = counter.row_keys([[1, 2], [3], [1, 2]])
    assert len(set(a)) == 3
    assert counter.row_keys([[3]]) == [a[1]]
    assert counter.row_keys([[1, 2], [1, 2]]) == [a[0], a[2]]


def test_cross_entropy_is_torchs():
    model, tokens = toy_model(), random_tokens(2, 5)
    masked = torch.ones(2, 1, 5, dtype=torch.bool)
    from hybrid.objective import Masking
    from hybrid.streams import two_stream_hidden

    loss = masked_loss(model, tokens, Masking(masked, masked.double()), 5)
    expected = F.cross_entropy(
        model.head(two_stream_hidden(model, tokens, masked, 5)), tokens.flatten(), reduction="sum"
    )
    torch.testing.assert_close(loss.total, expected)
