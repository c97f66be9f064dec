"""Three likelihoods: what each is, how they are ordered, and their errors."""

import itertools
import math

import pytest
import torch
from toy import MODES, nll_of, random_tokens, toy_model

from hybrid.likelihoods import Rows
from hybrid.likelihoods.elbo import mean_and_error, monte_carlo
from hybrid.likelihoods.enumerated import mask_table
from hybrid.model.two_stream import two_stream_hidden
from hybrid.objectives.estimators import Count
from hybrid.objectives.noise import NoiseKeys


def conditional(model, tokens, known, position, block_size):
    """log p(token at position | earlier blocks and the known positions of its block), by a forward of its own."""
    masked = torch.ones(1, 1, tokens.shape[1], dtype=torch.bool)
    for k in known:
        masked[0, 0, k] = False
    states = torch.zeros(tokens.shape[1], model.config.dim, dtype=torch.float64)
    states[masked[0, 0]] = two_stream_hidden(model, tokens, masked, block_size)
    return float(model.head(states[position]).log_softmax(-1)[tokens[0, position]])


@pytest.mark.parametrize("mode", MODES)
def test_enumerate_is_the_mean_over_orders(mode):
    """Every order of a block, one by one: the definition, in 3! + 2! paths."""
    model, tokens = toy_model(*mode), random_tokens(1, 5)
    nats = 0.0
    with torch.no_grad():
        for block in (range(3), range(3, 5)):
            likelihoods = []
            for order in itertools.permutations(block):
                path = [conditional(model, tokens, order[:i], order[i], 3) for i in range(len(order))]
                likelihoods.append(math.exp(sum(path)))
            nats -= math.log(sum(likelihoods) / len(likelihoods))
        got = nll_of(model, tokens, 3, "enumerate")
    assert float(got.nll) == pytest.approx(nats, abs=1e-10)
    assert got.stderr == 0 and got.tokens == 5 and got.method == "enumerate"


@pytest.mark.thin(1)
@pytest.mark.parametrize("mode", MODES)
def test_the_bound_is_above_the_any_order_likelihood(mode):
    model, tokens = toy_model(*mode), random_tokens(8, 9)
    with torch.no_grad():
        for block_size in (1, 2, 4, 9):
            bound = nll_of(model, tokens, block_size, draws="all").nll
            exact = nll_of(model, tokens, block_size, "enumerate").nll
            if block_size == 1:
                torch.testing.assert_close(bound, exact, rtol=0, atol=1e-12)
                torch.testing.assert_close(nll_of(model, tokens, 1, "exact").nll, exact, rtol=0, atol=1e-12)
            else:
                assert (bound > exact).all()


def test_any_order_probabilities_sum_to_one():
    """enumerate is a likelihood: over all 4^4 texts it sums to 1."""
    model = toy_model(vocab=4)
    texts = torch.tensor(list(itertools.product(range(4), repeat=4)))
    with torch.no_grad():
        total = torch.cat([(-nll_of(model, part, 4, "enumerate").nll).exp() for part in texts.split(64)]).sum()
    assert float(total) == pytest.approx(1, abs=1e-10)


def test_monte_carlo_agrees_with_all_masks_and_knows_its_error():
    """z-scores of 64 rows: none above 5 (false alarm 4e-5), and their spread is that of a unit normal."""
    model, tokens = toy_model(), random_tokens(64, 8)
    with torch.no_grad():
        sampled = nll_of(model, tokens, 4, draws=64)
        z = (sampled.nll - nll_of(model, tokens, 4, draws="all").nll) / sampled.stderr
    assert z.abs().max() < 5
    assert 0.7 < z.std() < 1.4, "64 z-scores; beyond these ends with probability about 1e-4"


def test_a_draw_of_the_bound_is_its_masks_times_their_weights():
    """L m_n of each block, with the loss of exactly these masks from the table of all masks."""
    model, tokens = toy_model(), random_tokens(3, 8)
    everything, keys = torch.ones_like(tokens, dtype=torch.bool), torch.tensor([5, 6, 7])
    masked = Count().draw(NoiseKeys.of_rows(9, keys), everything, 4, 6, True).masked  # (b, D, N)
    expected = torch.zeros(3, 6, dtype=torch.float64)
    with torch.no_grad():
        for block, (table, _) in enumerate(mask_table(model, Rows.of(tokens), 4)):
            here = masked[..., 4 * block : 4 * block + 4]
            subset = (here.long() << torch.arange(4)).sum(-1)
            losses = -table.gather(1, subset[..., None].expand(-1, -1, 4)).sum(-1)
            expected += 4 * losses / here.sum(-1)
        values, _ = monte_carlo(model, Rows.of(tokens, row_keys=keys), 4, 6, 9)
        got = nll_of(model, tokens, 4, draws=6, seed=9, keys=keys)
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(got.nll, expected.mean(1))
    torch.testing.assert_close(got.stderr, expected.std(1) / math.sqrt(6))


def test_the_error_of_a_mean_of_draws_by_hand():
    """The unbiased variance of the draws over their number: of 1 and 3, sqrt(2 / 2)."""
    values = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0]], dtype=torch.float64)
    mean, error = mean_and_error(values[:, :2])
    assert mean.tolist() == [2.0, 5.0] and error.tolist() == pytest.approx([1.0, 0.0])
    assert mean_and_error(values)[1].tolist() == pytest.approx([math.sqrt(1 / 3), 0.0])


def test_one_draw_has_no_error_and_rows_do_not_depend_on_their_company():
    model, tokens = toy_model(), random_tokens(6, 8)
    with torch.no_grad():
        together = nll_of(model, tokens, 4, draws=3, seed=5)
        alone = [nll_of(model, tokens[i : i + 1], 4, draws=3, seed=5).nll for i in range(6)]
        other = nll_of(model, tokens, 4, draws=3, seed=6)
    torch.testing.assert_close(together.nll, torch.cat(alone), rtol=0, atol=1e-12)
    assert (together.nll != other.nll).all()
    assert nll_of(model, tokens, 4).stderr.isnan().all()
    repeated = nll_of(model, tokens[:1].repeat(5, 1), 4).nll
    assert len(set(repeated.tolist())) == 5, "copies of a row get noise of their own"


@pytest.mark.parametrize("block_size, method, draws", [(1, "exact", 1), (4, "enumerate", 1), (4, "bound", "all")])
def test_given_tokens_are_context_and_do_not_count(block_size, method, draws):
    """The chain rule: a row is its first block, and the rest given that."""
    model, tokens = toy_model(), random_tokens(3, 10)
    first = (torch.arange(10) < 4).expand(3, -1)
    with torch.no_grad():
        whole, head, rest = (
            nll_of(model, tokens, block_size, method, draws, is_target=target) for target in (None, first, ~first)
        )
    torch.testing.assert_close(head.nll + rest.nll, whole.nll)
    assert (whole.tokens.tolist(), head.tokens.tolist(), rest.tokens.tolist()) == ([10] * 3, [4] * 3, [6] * 3)


def test_methods_refuse_what_they_are_not():
    model, tokens = toy_model(), random_tokens(1, 14)
    with pytest.raises(ValueError, match=r"method: 'exact' is the likelihood at block size 1, not 2; .*'enumerate'"):
        nll_of(model, tokens, 2, "exact")
    with pytest.raises(ValueError, match=r"block_size: 13 is too long to enumerate .*at most 12"):
        nll_of(model, tokens, 13, "enumerate")
    with pytest.raises(ValueError, match=r"block_size: 13 is too long to enumerate"):
        nll_of(model, tokens, 13, draws="all")
    with pytest.raises(ValueError, match=r"method: 'bond' is not one of .*did you mean 'bound'"):
        nll_of(model, tokens, 2, "bond")
