"""Decoders that reveal where the network is surest: their rules by hand, and the distributions of their texts."""

import pytest
import torch
from decoding_toy import Conditionals, as_name, chi_square_alarm, sample_counts, view_of
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import MODES, toy_model

from hybrid.decoding import DECODERS
from hybrid.decoding.confidence import RESOLUTION, Confidence, Entropy, EntropyBounded, Margin, reaches, surest_first
from hybrid.decoding.decoder import Prediction, View
from hybrid.decoding.fixed_order import FirstHitting
from hybrid.options import build

SCORES = {  # of a distribution, as the papers say
    "confidence": max,
    "margin": lambda p: sorted(p)[-1] - sorted(p)[-2],
    "entropy": lambda p: sum(q * torch.tensor(q).double().log().item() for q in p),
}


def surest(score):
    """The position of highest score; the leftmost of those that are equal but for rounding. No gap may be in doubt."""

    def choose(of):
        scores = {i: score(p) for i, p in of.items()}
        best = max(scores.values())
        gaps = [best - s for s in scores.values()]
        assert not any(1e-9 < gap < 2 * RESOLUTION for gap in gaps), "take another seed"
        return min(i for i, s in scores.items() if best - s < 1e-9)

    return choose


@pytest.mark.thin(3)
@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("spec", [{"name": "confidence", "token": "best"}, "margin", "entropy"], ids=as_name)
def test_a_sure_order_samples_the_product_of_its_conditionals(spec, mode):
    """Chi-square of 3,000 texts of three tokens behind one in the same block, against the order followed on each of the
    27 texts itself; false alarm below 1e-5 a case."""
    model = toy_model(*mode, vocab=3, seed=3)
    law = Conditionals(model, 3, 3, (1,)).follow(surest(SCORES[spec if isinstance(spec, str) else spec["name"]]))
    assert float(law.sum()) == pytest.approx(1)
    assert chi_square_alarm(sample_counts(model, spec, 4, 3, 3, n=3000, prompt=(1,)), law) > 1e-5


def test_the_chi_square_tells_margin_from_left_to_right():
    model = toy_model(vocab=3, seed=3)
    law = Conditionals(model, 3, 3, (1,)).follow(min)
    assert chi_square_alarm(sample_counts(model, "margin", 4, 3, 3, prompt=(1,)), law) < 1e-9


@pytest.mark.parametrize(
    "spec",
    ["left_to_right", "random", "margin", "entropy", "entropy_bounded", {"name": "confidence", "token": "best"}],
    ids=as_name,
)
def test_a_deterministic_order_asks_for_nothing_random(spec):
    """No uniform (the view would fail), and nothing that was drawn."""

    class Undrawn:
        log_probs = torch.tensor([[0.5, 0.45, 0.05], [0.4, 0.1, 0.5], [0.6, 0.2, 0.2]]).log()

    view = view_of(Undrawn.log_probs.exp())
    view.forward = Undrawn
    decoder = build(DECODERS, spec, "decoder")
    reveal, remask = decoder.select(view, decoder.start(view))
    assert reveal.any() and remask is None


def test_scores_rank_by_what_they_say():
    """Confidence looks at the proposed token, margin at the two best."""
    probabilities = torch.tensor([[0.5, 0.45, 0.05], [0.4, 0.1, 0.5], [0.6, 0.2, 0.2]])
    prediction = Prediction(probabilities.log(), torch.tensor([0, 1, 0]))
    is_masked = torch.ones(1, 3, dtype=torch.bool)
    view = View(
        0, torch.full((1, 3), 3), is_masked, ~is_masked, is_masked, lambda: torch.zeros(1, 3), lambda: prediction
    )
    assert Confidence().score(view)[0].tolist() == pytest.approx([0.5, 0.1, 0.6])
    assert Margin().score(view)[0].tolist() == pytest.approx([0.05, 0.1, 0.4], abs=1e-6)
    reveal, _ = Confidence(threshold=0.45).select(view, Confidence(threshold=0.45).start(view))
    assert reveal.tolist() == [[True, False, True]]
    reveal, _ = Confidence(threshold=0.99).select(view, None)
    assert reveal.tolist() == [[False, False, True]], "at least one"
    assert FirstHitting().start  # the exact decoder needs no score


def revealed(decoder, view):
    return decoder.select(view, decoder.start(view))[0][0].tolist()


def peaked(*best):
    """(m, 3) distributions whose largest probabilities these are."""
    return torch.tensor([[p, (1 - p) * 0.7, (1 - p) * 0.3] for p in best], dtype=torch.float64)


def test_the_factor_rule_of_fast_dllm():
    """(n + 1) (1 - c_n) for c = 0.99, 0.9, 0.6, 0.5: 0.02, 0.3, 1.6, 2.5."""
    view = view_of(peaked(0.6, 0.99, 0.5, 0.9))
    assert revealed(Confidence(factor=1.0), view) == [False, True, False, True]
    assert revealed(Confidence(factor=1.7), view) == [True, True, False, True]
    assert revealed(Confidence(factor=0.01), view) == [False, True, False, False], "at least one"
    assert revealed(Confidence(factor=9.0), view) == [True] * 4


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.42, 1), min_size=1, max_size=8), st.floats(0.05, 6))
def test_the_factor_rule_by_brute_force(confidences, factor):
    view = view_of(peaked(*confidences))
    c = sorted(confidences, reverse=True)
    left = [(n + 1) * (1 - c[n - 1]) for n in range(1, len(c) + 1)]
    if any(abs(value - factor) < 10 * (n + 2) * RESOLUTION for n, value in enumerate(left)):
        return  # in doubt
    n = max([n for n, value in enumerate(left, 1) if value < factor], default=1)
    assert sum(revealed(Confidence(factor=factor, token="best"), view)) == n


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.42, 1), min_size=1, max_size=8), st.floats(0, 4))
def test_entropy_is_bounded_by_brute_force(confidences, gamma):
    view = view_of(peaked(*confidences).clamp(min=1e-300))
    h = sorted(float(-(p * p.log()).sum()) for p in peaked(*confidences).clamp(min=1e-300))
    values = [sum(h[:n]) - max(h[:n]) for n in range(1, len(h) + 1)]
    if any(abs(value - gamma) < 10 * RESOLUTION for value in values[1:]):
        return  # in doubt
    got = revealed(EntropyBounded(gamma), view)
    assert sum(got) == max(n for n, value in enumerate(values, 1) if value <= gamma)


def test_what_is_equal_but_for_rounding_is_equal():
    """Wherever it lies between the steps of the resolution, and at a threshold."""
    for base in (0.5, 0.5 + RESOLUTION / 2, 0.3 + RESOLUTION / 2, 1 / 9):
        score = torch.tensor([[base - 3e-8, base + 3e-8, base - 1e-3, base]], dtype=torch.float64)
        assert surest_first(score, torch.ones_like(score).bool()).tolist() == [[0, 1, 3, 2]]
        assert reaches(score, base).tolist() == [[True, True, False, True]]
    same = view_of(peaked(0.6 - 3e-8, 0.6 + 3e-8, 0.6))
    assert revealed(Confidence(threshold=0.6), same) == [True] * 3
    assert revealed(Confidence(factor=0.8), same) == [True, False, False], "2 (1 - 0.6) is not below 0.8"
    entropy = float(Entropy().score(same)[0, 2])
    assert revealed(Entropy(threshold=entropy), same) == [True] * 3
    assert revealed(Margin(threshold=0.6 - 0.28), same) == [True] * 3
    assert revealed(EntropyBounded(-entropy), same) == [True, True, False]


def test_confidence_of_the_best_token_does_not_depend_on_the_draw():
    probabilities = peaked(0.6, 0.9, 0.5)
    view = view_of(probabilities)
    view.forward = lambda: Prediction(probabilities.log(), torch.tensor([1, 2, 0]))
    assert revealed(Confidence(token="best"), view) == [False, True, False]
    assert revealed(Confidence(), view) == [False, False, True], "0.28, 0.03 and 0.5 are those of the tokens drawn"
