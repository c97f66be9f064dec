"""Likelihoods of decoding orders: distributions over texts, and the relations between them."""

import itertools
import math

import pytest
import torch
from toy import MODES, nll_of, random_tokens, toy_model

from hybrid.decoding import DECODERS
from hybrid.likelihoods import Rows
from hybrid.likelihoods.enumerated import mask_table
from hybrid.likelihoods.orders import Policy

POLICIES = [
    "left_to_right",
    "margin",
    "entropy",
    {"name": "confidence", "token": "best"},
    {"name": "margin", "steps": 2},
    {"name": "entropy", "threshold": -0.9},
]

WITHOUT_POLICY = (
    "first_hitting",
    "ancestral",
    "confidence",
    "mask_predict",
    "p2",
    "remdm",
    "copula",
    "arpc",
    "speculative",
    "autoregressive",
)


def every_text(vocab: int, length: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(vocab), repeat=length)))


def as_name(spec):
    return spec if isinstance(spec, str) else "-".join(map(str, spec.values()))


@pytest.mark.thin(6)
@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("spec", POLICIES, ids=as_name)
def test_a_policy_is_a_distribution_over_texts(spec, mode):
    """V = 3, N = 5 in blocks of 4: the probabilities of all 243 texts sum to one, and are not those of random order."""
    model, texts = toy_model(*mode, vocab=3), every_text(3, 5)
    with torch.no_grad():
        got = nll_of(model, texts, 4, Policy(spec))
        any_order = nll_of(model, texts, 4, "enumerate").nll
    assert float((-got.nll).exp().sum()) == pytest.approx(1, abs=1e-9)
    assert (got.nll - any_order).abs().max() > 0.01
    assert (got.stderr == 0).all() and (got.tokens == 5).all() and got.method == "policy"


def orders_by_hand(model, tokens, choose):
    """The NLL of one row whose block is revealed one token at a time; `choose(log p at every position, masked set)`."""
    (table, _), *_ = mask_table(model, Rows.of(tokens), tokens.shape[1])
    left = set(range(tokens.shape[1]))
    nll = 0.0
    while left:
        position = choose(left)
        nll -= float(table[0, sum(1 << i for i in left), position])
        left.remove(position)
    return nll


def test_left_to_right_and_any_fixed_order_are_products_of_their_conditionals():
    model, tokens = toy_model(vocab=5), random_tokens(1, 5, vocab=5)
    with torch.no_grad():
        assert float(nll_of(model, tokens, 5, Policy("left_to_right")).nll) == pytest.approx(
            orders_by_hand(model, tokens, min)
        )
        best = min(
            orders_by_hand(model, tokens, lambda left, order=order: next(i for i in order if i in left))
            for order in itertools.permutations(range(5))
        )
        assert float(nll_of(model, tokens, 5, "best_order").nll) == pytest.approx(best)


def test_margin_is_followed_on_the_text_itself():
    """Independently of the view: at each step the gap of the two best tokens, from logits of the partly masked text."""
    model, tokens = toy_model(vocab=5), random_tokens(1, 4, vocab=5, seed=3)
    from hybrid.model.two_stream import two_stream_hidden

    def choose(left):
        masked = torch.tensor([i in left for i in range(4)])[None, None]
        probabilities = model.head(two_stream_hidden(model, tokens, masked, 4)).softmax(-1)
        two = probabilities.topk(2).values
        gaps = [round(float(gap), 5) for gap in two[:, 0] - two[:, 1]]  # equal but for rounding: the leftmost
        return sorted(left)[gaps.index(max(gaps))]

    with torch.no_grad():
        expected = orders_by_hand(model, tokens, choose)
        assert float(nll_of(model, tokens, 4, Policy("margin")).nll) == pytest.approx(expected)


def test_at_block_size_one_every_order_is_exact():
    model, tokens = toy_model(), random_tokens(3, 6)
    with torch.no_grad():
        exact = nll_of(model, tokens, 1, "exact").nll
        for method, options in [(Policy("margin"), {}), ("best_order", {}), ("importance", {"draws": 3})]:
            torch.testing.assert_close(nll_of(model, tokens, 1, method, **options).nll, exact)


@pytest.mark.thin(1)
@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_how_the_likelihoods_are_ordered(mode):
    """best order <= tightest of several <= each of them; best order <= any order <= importance, on average <= bound."""
    model, tokens = toy_model(*mode), random_tokens(4, 9)
    with torch.no_grad():
        best = nll_of(model, tokens, 4, "best_order").nll
        each = [nll_of(model, tokens, 4, Policy(spec)).nll for spec in POLICIES[:4]]
        tightest = nll_of(model, tokens, 4, Policy(POLICIES[:4])).nll
        any_order = nll_of(model, tokens, 4, "enumerate").nll
        bound = nll_of(model, tokens, 4, draws="all").nll
        means = [
            torch.stack([nll_of(model, tokens, 4, "importance", draws=k, seed=s).nll for s in range(60)])
            for k in (1, 4)
        ]
    assert (best <= tightest + 1e-12).all() and (tightest <= torch.stack(each).amin(0) + 1e-12).all()
    assert (best < any_order).all() and (any_order <= bound).all()
    # 60 independent replicates: each mean within 4.5 standard errors (false alarm 7e-6 a row, four rows).
    error = means[0].std(0) / math.sqrt(60)
    assert ((means[0].mean(0) - bound).abs() < 4.5 * error).all(), "one order is the bound"
    assert (means[1].mean(0) < means[0].mean(0) + 4.5 * error).all() and (means[1].mean(0) < bound).all()
    assert (means[1].mean(0) + 4.5 * means[1].std(0) / math.sqrt(60) > any_order).all(), "never below in expectation"


@pytest.mark.slow
def test_importance_approaches_the_any_order_likelihood_and_knows_its_error():
    """With 2,000 orders, within 5 of its own standard errors (false alarm 6e-7 a row), which are what 40 replicates of
    100 orders say."""
    model, tokens = toy_model(seed=1), random_tokens(2, 4)
    with torch.no_grad():
        any_order = nll_of(model, tokens, 4, "enumerate").nll
        got = nll_of(model, tokens, 4, "importance", draws=2000)
        few = torch.stack([nll_of(model, tokens, 4, "importance", draws=100, seed=s).nll for s in range(40)])
        said = nll_of(model, tokens, 4, "importance", draws=100).stderr
        one = nll_of(model, tokens, 4, "importance", draws=1)
    assert ((got.nll - any_order).abs() < 5 * got.stderr).all() and (got.stderr < 0.1).all()
    assert ((few.std(0) / said).log().abs() < math.log(1.8)).all()
    assert one.stderr.isnan().all()


def test_the_best_of_several_policies_is_chosen_for_each_block():
    model, tokens = toy_model(), random_tokens(6, 12)
    with torch.no_grad():
        each = [nll_of(model, tokens, 4, Policy(spec)) for spec in POLICIES[:3]]
        several = nll_of(model, tokens, 4, Policy(POLICIES[:3]))
    for one in each:
        torch.testing.assert_close(one.blocks.sum(1), one.nll)
    blocks = torch.stack([one.blocks for one in each]).amin(0)
    torch.testing.assert_close(several.blocks, blocks)
    torch.testing.assert_close(several.nll, blocks.sum(1))
    assert (several.nll < torch.stack([one.nll for one in each]).amin(0) - 1e-3).any(), "no one is best everywhere"


def test_the_error_of_two_orders_by_hand():
    """-log of the mean of p and q has the error |p - q| / (p + q), to first order; blocks add in quadrature."""
    model, tokens = toy_model(seed=1), random_tokens(3, 8)
    first = (torch.arange(8) < 4).expand(3, -1)
    with torch.no_grad():
        variance = torch.zeros(3, dtype=torch.float64)
        for block in (first, ~first):  # the other one is given, and the orders are the same
            both = nll_of(model, tokens, 4, "importance", draws=2, is_target=block)
            p = (-nll_of(model, tokens, 4, "importance", draws=1, is_target=block).nll).exp()
            q = 2 * (-both.nll).exp() - p  # (p + q) / 2 is what both say
            torch.testing.assert_close(both.stderr, (p - q).abs() / (p + q))
            variance += both.stderr**2
        whole = nll_of(model, tokens, 4, "importance", draws=2).stderr
    torch.testing.assert_close(whole, variance.sqrt())
    assert (whole > 0.01).all()


def test_prompts_documents_and_batches():
    """Only targets count, documents keep apart, and a row does not depend on its company."""
    model, tokens = toy_model(), random_tokens(5, 8)
    is_target = torch.rand(5, 8, generator=torch.Generator().manual_seed(2)) < 0.6
    documents = (torch.arange(8) >= 5).long().expand(5, -1)
    with torch.no_grad():
        for method, options in [(Policy("entropy"), {}), ("best_order", {}), ("importance", {"draws": 4})]:
            whole = nll_of(model, tokens, 4, method, documents=documents, is_target=is_target, **options)
            alone = nll_of(model, tokens[2:3], 4, method, documents=documents[2:3], is_target=is_target[2:3], **options)
            torch.testing.assert_close(whole.nll[2:3], alone.nll)
            assert torch.equal(whole.tokens, is_target.sum(1))
            without = nll_of(model, tokens, 4, method, is_target=is_target, **options)
            assert not torch.allclose(whole.nll, without.nll)


def test_chunks_of_rows_change_nothing(monkeypatch):
    model, tokens = toy_model(), random_tokens(5, 8)
    with torch.no_grad():
        whole = nll_of(model, tokens, 4, Policy("margin")).nll
        monkeypatch.setattr("hybrid.likelihoods.orders.ROWS_PER_FORWARD", 33)
        torch.testing.assert_close(nll_of(model, tokens, 4, Policy("margin")).nll, whole)


@pytest.mark.parametrize(
    "spec, message",
    [
        (None, "needs one, e.g. decoder='margin'"),
        ([], "needs one"),
        ("first_hitting", "the order of FirstHitting.* is random"),
        ("ancestral", "is random"),
        ("confidence", "depends on the tokens that it draws.*token=best"),
        ("mask_predict", "depends on the tokens that it draws|re-masks"),
        ("p2", "depends on the tokens that it draws|re-masks"),
        ("remdm", "is random|re-masks"),
    ],
)
def test_orders_without_a_likelihood_are_refused(spec, message):
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        nll_of(toy_model(), random_tokens(1, 6), 4, Policy(spec))


def test_every_decoder_has_a_policy_likelihood_or_says_why_not():
    model, texts = toy_model(vocab=3), every_text(3, 4)
    with torch.no_grad():
        for name in DECODERS:
            if name in WITHOUT_POLICY:
                with pytest.raises(ValueError, match="policy likelihood"):
                    nll_of(model, texts, 4, Policy(name))
            else:
                assert float((-nll_of(model, texts, 4, Policy(name)).nll).exp().sum()) == pytest.approx(1, abs=1e-9), (
                    name
                )


def test_best_order_needs_short_blocks():
    with pytest.raises(ValueError, match="block_size: 13 is too long to enumerate"):
        nll_of(toy_model(), random_tokens(1, 14), 13, "best_order")
