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
from hybrid.data import Batch
from hybrid.likelihood import enumerated_bound, mask_table, row_nll
from hybrid.noise import SCHEDULES, Keys, block_uniforms
from hybrid.objective import (
    OBJECTIVES,
    Clipped,
    Count,
    Objective,
    ObjectiveConfig,
    Time,
    build_estimator,
    masked_loss,
)
from hybrid.options import build
from hybrid.proposals import Adaptive, Uniform
from hybrid.weightings import WEIGHTINGS, Bert, Cart, MaskGIT, PlainCrossEntropy, weigh


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


def adaptive(block_size: int = 4) -> Adaptive:
    """A proposal that has learned something odd."""
    proposal = Adaptive(uniform=0.2)
    n = torch.arange(1, block_size + 1)
    proposal.learn(block_size, torch.full_like(n, block_size), n, torch.tensor([5.0, 1.0, 0.1, 2.0]))
    return proposal


PROPOSED = [
    "uniform", {"name": "power", "exponent": -1.5}, {"name": "explicit", "weights": [1.0, 5.0, 2.0, 0.5]}, adaptive(),
    MaskGIT(),
]  # fmt: skip
COUNTS = [Count(proposal, complementary) for proposal in PROPOSED for complementary in (False, True)]


def values_of(estimator, model, tokens, block_size: int, n: int, stratified: bool, weighting=None):
    """(rows, n) the losses of n draws, from the enumerated masks; those of a complementary pair are averaged."""
    everything = torch.ones_like(tokens, dtype=torch.bool)
    masking = estimator.draw(Keys.of_rows(1, torch.arange(len(tokens))), everything, block_size, n, stratified)
    weights = masking.weight
    if weighting is not None:
        weights = weights * weigh(weighting, masking.masked, everything, block_size)
    values = torch.zeros(masking.masked.shape[:2], dtype=torch.float64)
    start = 0
    for table, _ in mask_table(model, tokens, block_size, None, everything):
        size = table.shape[-1]
        masked, weight = (t[:, :, start : start + size] for t in (masking.masked, weights))
        subset = (masked.long() << torch.arange(size)).sum(-1)
        losses = -table.gather(1, subset[..., None].expand(-1, -1, size))
        values += (losses * weight * masked).sum(-1)
        start += size
    return values.unflatten(1, (-1, 2)).mean(-1) if getattr(estimator, "complementary", False) else values


def assert_mean(values, expected):
    """The mean of each row within 4.5 standard errors (false alarm 7e-6 a row)."""
    error = values.std(1) / math.sqrt(values.shape[1])
    assert ((values.mean(1) - expected).abs() < 4.5 * error).all()
    assert (error < 0.1 * expected).all(), "the test would not notice a bias otherwise"


@pytest.mark.parametrize("estimator", [*COUNTS, *(Time(name) for name in sorted(SCHEDULES))], ids=str)
@pytest.mark.parametrize("stratified", [False, True])
def test_estimators_are_unbiased(estimator, stratified):
    """Mean over 8,000 draws against the enumerated bound.

    Draws of `Keys.of_rows` are independent, so their spread gives the error; the tail of the time form is heavy but
    bounded here by t >= 2^-53, and its error is estimated from the same draws.
    """
    model, tokens = toy_model(vocab=4), random_tokens(2, 6, vocab=4)
    expected = row_nll(model, tokens, 4, draws="all").nll
    assert_mean(values_of(estimator, model, tokens, 4, 8000, stratified), expected)


def test_the_clipped_interval_is_biased_as_it_says():
    """Its mean is the integral over the interval, which is not the bound (by quadrature over t)."""
    estimator = Clipped(low=0.3, high=0.8)
    model, tokens = toy_model(vocab=4), random_tokens(2, 4, vocab=4)
    nodes, weights = _gauss_legendre(40)
    t, dt = 0.3 + 0.5 * nodes, weights  # an average over the interval

    def weight(n):
        return float((dt / t * t**n * (1 - t) ** (4 - n)).sum())

    expected, bound = expected_weighted_loss(model, tokens, 4, weight)
    assert_mean(values_of(estimator, model, tokens, 4, 8000, False), expected)
    assert ((expected - bound).abs() > 0.1 * bound).any()
    assert not Objective(estimator).is_elbo and Objective(Time()).is_elbo


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
