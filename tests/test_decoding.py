"""Decoders and the engine: what is exact is tested as a distribution, the rest as laws."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import MODES, random_tokens, toy_model

from hybrid.decoding import DECODERS, Sampling
from hybrid.decoding.engine import Engine
from hybrid.decoding.ranked import Ancestral, FirstHitting
from hybrid.decoding.scored import Confidence, Margin
from hybrid.decoding.view import quota
from hybrid.likelihood import row_nll
from hybrid.options import build

SPECS = [
    *DECODERS,
    {"name": "first_hitting", "steps": 2},
    {"name": "ancestral", "steps": 3, "schedule": "cosine_mdlm"},
    {"name": "confidence", "steps": 2},
    {"name": "confidence", "threshold": 0.5},
    {"name": "margin", "threshold": 0.3},
    {"name": "entropy", "threshold": -1.0},
]


def engine(model, block_size, decoder="first_hitting", seq_len=14, **options):
    return Engine(model, seq_len, block_size, build(DECODERS, decoder, "decoder"), **options)


def as_name(spec):
    return spec if isinstance(spec, str) else "-".join(map(str, spec.values()))


@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("spec", SPECS, ids=as_name)
def test_rows_are_the_same_alone_and_in_a_batch_cached_and_not(spec, mode):
    """float32; ragged prompts: an empty one, one ending inside a block, one with an end of text; a short last block."""
    model = toy_model(*mode, vocab=9, dtype=torch.float32)
    prompts = [[], [1, 2, 3], [4] * 6, [8, 5, 0, 2, 1]]
    for block_size in (1, 4, 5, 14):
        batch = engine(model, block_size, spec, seed=3).generate(prompts, 8)
        uncached = engine(model, block_size, spec, seed=3, cache=False).generate(prompts, 8)
        alone = [engine(model, block_size, spec, seed=3).generate([p], 8).tokens[0] for p in prompts]
        assert batch.tokens == uncached.tokens == alone
        assert batch.nfe == uncached.nfe


@pytest.mark.parametrize("spec", SPECS, ids=as_name)
def test_revealed_tokens_never_change(spec):
    model = toy_model(vocab=9)
    seen: dict[tuple[int, int], int] = {}
    for progress in engine(model, 5, spec).stream([[1], [2, 3]], 11):
        for row, tokens in enumerate(progress.tokens):
            for position, token in enumerate(tokens):
                if token != model.mask_token_id:
                    assert seen.setdefault((row, position), token) == token
    assert progress.done


@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("spec", SPECS, ids=as_name)
def test_a_certain_model_is_reproduced(spec, mode):
    """An oracle that knows the text puts all mass on it; every decoder must then write it, whatever its order."""
    model = toy_model(*mode, vocab=9)
    text = random_tokens(1, 14, vocab=8, seed=4)[0]  # without end of text
    position = {}

    def remember(module, arguments):
        tokens, positions, pattern = arguments
        position["now"] = pattern.reading().select_queries(positions.expand_as(tokens))

    def know(hidden):
        logits = torch.full((*hidden.shape[:-1], 9), -1e9, dtype=hidden.dtype)
        return logits.scatter(-1, hidden[..., :1].round().long(), 0.0)

    begin = int(mode[1] == "next_token")

    def speak(module, arguments, kwargs, output):  # the state of a row is the token that it predicts
        at = position["now"]
        predicted = text[at.clamp(max=13)]  # in place: slot = position; next_token: slot l holds text token l - 1
        return predicted.to(output.dtype)[..., None].expand_as(output)

    model.register_forward_pre_hook(remember)
    model.register_forward_hook(speak, with_kwargs=True)
    model.head = know
    assert begin in (0, 1)
    for block_size in (1, 3, 14):
        got = engine(model, block_size, spec).generate([text[:4].tolist()], 10)
        assert got.tokens[0] == text[4:].tolist()


def all_texts(vocab, n):
    return torch.tensor(list(itertools.product(range(vocab), repeat=n)))


def chi_square_alarm(counts, probabilities):
    """False alarm probability of a deviation this large, by the Wilson-Hilferty approximation; rare cells merged."""
    n = counts.sum()
    order = probabilities.argsort()
    expected, observed = (probabilities * n)[order], counts[order]
    cell = (expected.cumsum(0) / 8).long()  # cells of at least about 8 expected
    cells = int(cell.max()) + 1
    e = torch.zeros(cells, dtype=torch.float64).index_add_(0, cell, expected)
    o = torch.zeros(cells, dtype=torch.float64).index_add_(0, cell, observed.double())
    keep = e > 4
    e, o = torch.cat([e[keep], e[~keep].sum()[None]]), torch.cat([o[keep], o[~keep].sum()[None]])
    e, o = e[e > 0], o[e > 0]
    df = len(e) - 1
    statistic = float(((o - e) ** 2 / e).sum())
    z = ((statistic / df) ** (1 / 3) - (1 - 2 / (9 * df))) / math.sqrt(2 / (9 * df))
    return 0.5 * math.erfc(z / math.sqrt(2))


def sample_counts(model, spec, block_size, vocab, length, n=6000, prompt=(), **options):
    run = engine(model, block_size, spec, seq_len=length + len(prompt), stop_at_end=False, **options)
    rows = torch.tensor(run.generate([list(prompt)] * n, length).tokens)
    index = (rows * vocab ** torch.arange(length - 1, -1, -1)).sum(1)
    return torch.bincount(index, minlength=vocab**length)


@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("block_size", [1, 2, 3, 4])
@pytest.mark.parametrize("spec", ["first_hitting", {"name": "ancestral", "steps": 100_000}], ids=as_name)
def test_first_hitting_samples_the_any_order_distribution(spec, block_size, mode):
    """Chi-square of 6,000 texts against the enumerated law; false alarm below 1e-5 a case. Ancestral decoding is exact
    as its grid gets fine (two of 4 tokens share one of 100,000 cells with probability 6e-5)."""
    model = toy_model(*mode, vocab=3)
    texts = all_texts(3, 4)
    with torch.no_grad():
        probabilities = (-row_nll(model, texts, block_size, "enumerate").nll).exp()
    alarm = chi_square_alarm(sample_counts(model, spec, block_size, 3, 4), probabilities)
    assert alarm > 1e-5


def test_the_chi_square_would_notice():
    """Left-to-right decoding follows another law than the random order; the same test must tell them apart."""
    model = toy_model(vocab=3, seed=1)
    with torch.no_grad():
        probabilities = (-row_nll(model, all_texts(3, 4), 4, "enumerate").nll).exp()
    assert chi_square_alarm(sample_counts(model, "left_to_right", 4, 3, 4), probabilities) < 1e-9


def test_ancestral_with_a_coarse_grid_follows_its_own_law():
    """Two steps over a block of 2: both at once with probability 1/2 (independent), else one after the other."""
    model = toy_model(vocab=3)
    texts = all_texts(3, 2)
    with torch.no_grad():
        from hybrid.likelihood import mask_table

        (table, _), *_ = mask_table(model, texts, 2, None, torch.ones_like(texts, dtype=torch.bool))
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
        probabilities = (-row_nll(model, texts, 4, "enumerate", is_target=is_target).nll).exp()
    assert float(probabilities.sum()) == pytest.approx(1)
    counts = sample_counts(model, "first_hitting", 4, 3, 2, prompt=prompt)
    assert chi_square_alarm(counts, probabilities) > 1e-5


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 40), st.sampled_from(sorted(["linear", "cosine_mdlm", "cosine_md4"])))
def test_ancestral_reveals_as_many_per_cell_as_the_schedule_says(block, steps, schedule):
    """Cells are visited in order of time, one forward each, empty ones not at all."""
    from hybrid.decoding.view import View

    is_masked = torch.ones(3, block, dtype=torch.bool)
    u = torch.rand(3, block, generator=torch.Generator().manual_seed(block), dtype=torch.float64)
    view = View(0, torch.zeros(3, block).long(), is_masked, ~is_masked, is_masked, lambda: u, lambda: None)
    rank = Ancestral(steps, schedule).start(view)
    from hybrid.noise import SCHEDULES

    grid = SCHEDULES[schedule]().masked(torch.arange(1, steps, dtype=torch.float64) / steps)
    cell = (u[..., None] > grid).sum(-1)  # of the hitting time: how many grid points it lies behind
    for row in range(3):
        assert sorted(set(rank[row].tolist())) == list(range(len(set(rank[row].tolist())))), "no empty steps"
        for i, j in itertools.product(range(block), range(block)):
            assert (rank[row, i] < rank[row, j]) == (cell[row, i] > cell[row, j])


def test_forwards_are_the_decoders_steps_and_no_more():
    """No commit pass, no prefill pass, no forward for a step in which nothing is revealed."""
    model = toy_model(vocab=9)
    options = {"stop_at_end": False, "seq_len": 40}
    assert engine(model, 8, **options).generate([[]], 32).nfe == 32
    assert engine(model, 8, {"name": "confidence", "steps": 2}, **options).generate([[]], 32).nfe == 8
    assert engine(model, 8, **options).generate([[1] * 16], 16).nfe == 16
    assert engine(model, 8, **options).generate([[1] * 13], 3).nfe == 3, "a started block has three tokens left"
    assert engine(model, 8, {"name": "ancestral", "steps": 1000}, **options).generate([[]], 32).nfe <= 32


def test_an_autoregressive_step_is_one_row():
    """next_token at block size 1: each forward is the token that was just written, nothing else."""
    model = toy_model("causal", "next_token", vocab=9)
    rows = []
    model.register_forward_pre_hook(lambda module, arguments: rows.append(arguments[0].shape[1]))
    engine(model, 1, stop_at_end=False).generate([[1, 2, 3]], 5)
    assert rows == [4, 1, 1, 1, 1], "begin and prompt first"


def test_steps_spread_a_block_evenly():
    masked = torch.tensor([[1] * 10, [1] * 7 + [0] * 3, [1] * 2 + [0] * 8]).bool()
    assert quota(masked, 4).tolist() == [[3, 3, 2, 2], [2, 2, 2, 1], [1, 1, 0, 0]]
    assert quota(masked, None).sum(1).tolist() == [10, 7, 2]


def test_text_is_cut_at_its_end_and_at_the_limit():
    model = toy_model(vocab=3)
    whole = engine(model, 4, stop_at_end=False).generate([[], [1]], 12).tokens
    stopped = engine(model, 4).generate([[], [1]], 12).tokens
    for full, short in zip(whole, stopped, strict=True):
        end = full.index(2) + 1 if 2 in full else 12
        assert short == full[:end]
    assert engine(model, 4).generate([[], [1]], 0).tokens == [[], []]
    cut = engine(model, 4, stop_at_end=False).generate([[], [1]], 5).tokens
    assert cut == [row[:5] for row in whole], "the law of a text does not depend on where it is cut"


def test_prompts_that_do_not_fit_are_refused():
    run = engine(toy_model(), 4)
    with pytest.raises(
        ValueError, match=r"max_new_tokens: 5 new tokens behind prompt 1 of 10 tokens exceed the context of 14"
    ):
        run.generate([[1], [1] * 10], 5)
    with pytest.raises(ValueError, match=r"prompts: token 7 of prompt 0 is not in the vocabulary \(0 to 6\)"):
        run.generate([[7]], 2)
    with pytest.raises(ValueError, match=r"max_new_tokens: -1 must be an integer of at least 0"):
        run.generate([[1]], -1)


def test_a_stuck_decoder_is_named(monkeypatch):
    class Stuck:
        def start(self, view):
            return None

        def select(self, view, state):
            return torch.zeros_like(view.is_masked), None

    monkeypatch.setattr("hybrid.decoding.engine.MAX_IDLE_STEPS", 5)
    with pytest.raises(ValueError, match=r"decoder: .*Stuck.* revealed nothing in 6 steps"):
        Engine(toy_model(), 14, 4, Stuck()).generate([[]], 4)


def test_a_decoder_may_remask_within_its_block_but_not_the_prompt():
    """A user's decoder: reveals all, then re-masks what is not fixed once, then reveals again."""
    fixed_seen = []

    class TwoPasses:
        def start(self, view):
            return None

        def select(self, view, state):
            fixed_seen.append(view.is_fixed.clone())
            again = torch.ones_like(view.is_masked) if view.step == 0 else None
            return view.is_masked, again

    model = toy_model(vocab=9)
    got = Engine(model, 14, 4, TwoPasses(), stop_at_end=False).generate([[1, 2]], 6)
    assert got.nfe == 4, "two blocks, two passes each"
    assert fixed_seen[0].tolist() == [[True, True, False, False]]


def test_options_of_decoders_are_checked():
    for spec, message in [
        ({"name": "confidence", "steps": 0}, "steps: 0 is too small"),
        ({"name": "confidence", "steps": 2, "threshold": 0.5}, "either steps or threshold"),
        ({"name": "entropy", "threshold": 0.5}, "minus an entropy"),
        ({"name": "ancestral", "schedule": "lienar"}, "did you mean 'linear'"),
        ("first_hiting", "did you mean 'first_hitting'"),
    ]:
        with pytest.raises(ValueError, match=message):
            build(DECODERS, spec, "decoder")


# ---------------------------------------------------------------------------------------------------------------------
# Sampling


def test_proposals_follow_the_distribution():
    """Chi-square of 50,000 tokens, false alarm below 1e-5; temperature, top-k and nucleus at once."""
    log_probs = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05]).log()
    u = torch.rand(50_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for sampling, weights in [
        (Sampling(), [0.4, 0.3, 0.15, 0.1, 0.05]),
        (Sampling(temperature=0.5), [0.16, 0.09, 0.0225, 0.01, 0.0025]),
        (Sampling(top_k=2), [0.4, 0.3, 0, 0, 0]),
        (Sampling(top_p=0.71), [0.4, 0.3, 0.15, 0, 0]),
    ]:
        counts = torch.bincount(sampling.propose(log_probs.expand(50_000, 5), u), minlength=5)
        probabilities = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        assert (counts[probabilities == 0] == 0).all()
        keep = probabilities > 0
        assert chi_square_alarm(counts[keep], probabilities[keep]) > 1e-5


def test_the_token_that_crosses_top_p_is_in():
    log_probs = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert Sampling(top_p=0.6).truncate(log_probs).isfinite().tolist() == [[True, True, False]]
    assert Sampling(top_p=0.3).truncate(log_probs).isfinite().tolist() == [[True, False, False]]


def test_temperature_zero_takes_the_best_and_extreme_uniforms_are_safe():
    log_probs = torch.tensor([[0.2, 0.5, 0.3], [0.7, 0.3, 0.0]]).log()
    edge = torch.tensor([1 - 2**-53, 1 - 2**-53], dtype=torch.float64)
    assert Sampling(temperature=0).propose(log_probs, edge).tolist() == [1, 0]
    assert Sampling().propose(log_probs, edge).tolist() == [2, 1], "a token of mass 0 is never drawn"
    assert Sampling().propose(log_probs, torch.zeros(2, dtype=torch.float64)).tolist() == [0, 0]


def test_sampling_settings_are_checked():
    for options, message in [
        ({"temperature": -1}, "temperature: -1"),
        ({"temperature": math.nan}, "temperature: nan"),
        ({"top_k": 0}, "top_k: 0"),
        ({"top_p": 0.0}, "top_p: 0.0"),
        ({"top_p": 1.5}, "top_p: 1.5"),
    ]:
        with pytest.raises(ValueError, match=message):
            Sampling(**options)


def test_scores_rank_by_what_they_say():
    """Confidence looks at the proposed token, margin at the two best."""
    from hybrid.decoding.view import Prediction, View

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
