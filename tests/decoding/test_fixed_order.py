"""Decoders whose order is set beforehand: their distributions, their plans, and what they leave alone."""

import itertools

import pytest
import torch
from decoding_toy import Conditionals, Spy, all_texts, as_name, chi_square_alarm, engine, sample_counts, view_of
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import MODES, nll_of, toy_model

from hybrid.decoding import DECODERS, View
from hybrid.decoding.fixed_order import Ancestral, LeftToRight, Random
from hybrid.likelihoods import Rows
from hybrid.likelihoods.enumerated import mask_table
from hybrid.objectives.schedules import SCHEDULES
from hybrid.options import build


@pytest.mark.thin(4)
@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("block_size", [1, 2, 3, 4])
@pytest.mark.parametrize("spec", ["first_hitting", {"name": "ancestral", "steps": 100_000}], ids=as_name)
def test_first_hitting_samples_the_any_order_distribution(spec, block_size, mode):
    """Chi-square of 6,000 texts against the enumerated law; false alarm below 1e-5 a case. Ancestral decoding is exact
    as its grid gets fine (two of 4 tokens share one of 100,000 cells with probability 6e-5)."""
    model = toy_model(*mode, vocab=3)
    texts = all_texts(3, 4)
    with torch.no_grad():
        probabilities = (-nll_of(model, texts, block_size, "enumerate").nll).exp()
    alarm = chi_square_alarm(sample_counts(model, spec, block_size, 3, 4), probabilities)
    assert alarm > 1e-5


def test_the_chi_square_would_notice():
    """Left-to-right decoding follows another law than the random order; the same test must tell them apart."""
    model = toy_model(vocab=3, seed=1)
    with torch.no_grad():
        probabilities = (-nll_of(model, all_texts(3, 4), 4, "enumerate").nll).exp()
    assert chi_square_alarm(sample_counts(model, "left_to_right", 4, 3, 4), probabilities) < 1e-9


def test_ancestral_with_a_coarse_grid_follows_its_own_law():
    """Two steps over a block of 2: both at once with probability 1/2 (independent), else one after the other."""
    model = toy_model(vocab=3)
    texts = all_texts(3, 2)
    with torch.no_grad():
        (table, _), *_ = mask_table(model, Rows.of(texts), 2)
    both = table[:, 3].sum(1).exp()
    one_by_one = 0.5 * ((table[:, 3, 0] + table[:, 2, 1]).exp() + (table[:, 3, 1] + table[:, 1, 0]).exp())
    probabilities = 0.5 * both + 0.5 * one_by_one
    counts = sample_counts(model, {"name": "ancestral", "steps": 2}, 2, 3, 2)
    assert chi_square_alarm(counts, probabilities) > 1e-5
    assert chi_square_alarm(counts, one_by_one) < 1e-5


def test_a_prompt_inside_a_block_conditions_on_its_tokens():
    """Block of 4, two tokens given: the law of the others is that of any-order decoding with these revealed."""
    model = toy_model(vocab=3)
    prompt = (2, 0)
    texts = torch.cat([torch.tensor(prompt).expand(9, 2), all_texts(3, 2)], dim=1)
    is_target = torch.tensor([False, False, True, True]).expand(9, 4)
    with torch.no_grad():
        probabilities = (-nll_of(model, texts, 4, "enumerate", is_target=is_target).nll).exp()
    assert float(probabilities.sum()) == pytest.approx(1)
    counts = sample_counts(model, "first_hitting", 4, 3, 2, prompt=prompt)
    assert chi_square_alarm(counts, probabilities) > 1e-5


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 40), st.sampled_from(sorted(["linear", "cosine_mdlm", "cosine_md4"])))
def test_ancestral_reveals_as_many_per_cell_as_the_schedule_says(block, steps, schedule):
    """Cells are visited in order of time, one forward each, empty ones not at all."""
    is_masked = torch.ones(3, block, dtype=torch.bool)
    u = torch.rand(3, block, generator=torch.Generator().manual_seed(block), dtype=torch.float64)
    view = View(0, torch.zeros(3, block).long(), is_masked, ~is_masked, is_masked, lambda: u, lambda: None)
    rank = Ancestral(steps, schedule).start(view)
    grid = SCHEDULES[schedule]().one_minus_alpha(torch.arange(1, steps, dtype=torch.float64) / steps)
    cell = (u[..., None] > grid).sum(-1)  # of the hitting time: how many grid points it lies behind
    for row in range(3):
        assert sorted(set(rank[row].tolist())) == list(range(len(set(rank[row].tolist())))), "no empty steps"
        for i, j in itertools.product(range(block), range(block)):
            assert (rank[row, i] < rank[row, j]) == (cell[row, i] > cell[row, j])


@pytest.mark.thin(3)
@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("spec", ["left_to_right", "random", {"name": "random", "order_seed": 1}], ids=as_name)
def test_a_fixed_order_samples_the_product_of_its_conditionals(spec, mode):
    """Chi-square of 3,000 texts of three tokens behind one in the same block; false alarm below 1e-5 a case."""
    model = toy_model(*mode, vocab=3)
    decoder = build(DECODERS, spec, "decoder")
    is_masked = torch.tensor([[False, True, True, True]])
    due = decoder.start(view_of(torch.full((3, 3), 1 / 3), is_masked))[0, 1:].tolist()
    law = Conditionals(model, 3, 3, (1,)).follow(lambda of: min(of, key=lambda i: due[i]))
    assert float(law.sum()) == pytest.approx(1)
    assert chi_square_alarm(sample_counts(model, spec, 4, 3, 3, n=3000, prompt=(1,)), law) > 1e-5


def test_the_chi_square_tells_two_fixed_orders_apart():
    model = toy_model(vocab=3)
    law = Conditionals(model, 3, 3, (1,)).follow(min)
    counts = sample_counts(model, {"name": "random", "order_seed": 1}, 4, 3, 3, prompt=(1,))
    assert chi_square_alarm(counts, law) < 1e-9


def test_a_random_order_is_one_permutation():
    """The same in every row and block, and among the masked positions of a started or short block; the seed decides."""
    everything = torch.full((12, 3), 1 / 3)
    order = Random().start(view_of(everything))[0]
    assert sorted(order.tolist()) == list(range(12)) != order.tolist()
    assert order.tolist() != Random(order_seed=1).start(view_of(everything))[0].tolist()
    is_masked = torch.tensor([[True, False, True, True, False, True]])
    part = Random().start(view_of(torch.full((4, 3), 1 / 3), is_masked))[0][is_masked[0]]
    assert part.argsort().tolist() == order[:6][is_masked[0]].argsort().tolist()
    spy = Spy(Random())
    engine(toy_model(vocab=9), 4, spy, stop_at_end=False, seq_len=16).generate([[], [1] * 4], 12)
    assert len(spy.steps) == 12
    for view, reveal, *_ in spy.steps:
        first = order[:4].argsort()[view.step]
        assert reveal.nonzero().tolist() == [[row, int(first)] for row in range(len(reveal))]


def test_ordered_decoders_reveal_what_their_schedule_says():
    view = view_of(torch.full((5, 3), 1 / 3))
    assert LeftToRight(steps=2).start(view).tolist() == [[0, 0, 0, 1, 1]]
    assert LeftToRight(per_step=2).start(view).tolist() == [[0, 0, 1, 1, 2]]
    assert LeftToRight(steps=3, plan="cosine").start(view).tolist() == [[0, 1, 1, 2, 2]]
    assert LeftToRight().start(view).tolist() == [[0, 1, 2, 3, 4]]
