"""Decoders that re-mask: their chains enumerated on a toy, what they promise of each step, and planners."""

import itertools
import math

import pytest
import torch
from decoding_toy import Conditionals, Spy, chi_square_alarm, engine, sample_counts, view_of
from toy import MODES, random_tokens, toy_model

from hybrid.decoding.remasking import MaskPredict, PathPlanning, ReMDM, time_grid
from hybrid.model.block_pass import BlockRows, Sight, block_hidden

START = ((None, 1.0),) * 3  # (token, the confidence that it had when it was revealed) of three positions


def outcomes(conditionals, state, reveal_with=1.0):
    """What a masked position may do: (probability, its tokens): each is revealed with a probability, else stays."""
    masked = [i for i, (token, _) in enumerate(state) if token is None]
    tokens = tuple(token for token, _ in state)
    of = {i: conditionals(tokens, i) for i in masked}
    choices = [(None, *range(conditionals.vocab)) if reveal_with < 1 else range(conditionals.vocab)] * len(masked)
    for drawn in itertools.product(*choices):
        p, after = 1.0, list(state)
        for i, v in zip(masked, drawn, strict=True):
            p *= 1 - reveal_with if v is None else reveal_with * of[i][v]
            after[i] = (v, 1.0 if v is None else round(of[i][v], 9))
        if p:
            yield p, after


def mask_predict_move(conditionals, rounds):
    def move(state, step):
        result = {}
        for p, after in outcomes(conditionals, state):
            n_masked = 3 * (rounds - step - 1) // rounds
            by_confidence = sorted(range(3), key=lambda i: (-round(after[i][1], 6), i))
            for i in by_confidence[3 - n_masked :]:
                after[i] = (None, 1.0)
            result[tuple(after)] = result.get(tuple(after), 0.0) + p
        return result

    return move


def remdm_move(conditionals, steps, strategy, eta):
    """By the formulae of the paper, with the linear schedule alpha = 1 - t."""

    def move(state, step):
        alpha_t, alpha_s = step / steps, (step + 1) / steps
        largest = min(1.0, (1 - alpha_s) / alpha_t) if alpha_t else 1.0
        known = [i for i, (token, _) in enumerate(state) if token is not None]
        total = sum(math.exp(-state[i][1]) for i in known)
        sigma = {
            "cap": lambda i: min(eta, largest),
            "rescale": lambda i: eta * largest,
            "confidence": lambda i: eta * largest * math.exp(-state[i][1]) / total if i in known else 0.0,
        }[strategy]
        masked_sigma = 0.0 if strategy == "confidence" else sigma(0)
        unmask = (alpha_s - (1 - masked_sigma) * alpha_t) / (1 - alpha_t)
        result = {}
        for p, revealed in outcomes(conditionals, state, unmask):
            for back in itertools.product((False, True), repeat=len(known)):
                q, after = p, list(revealed)
                for i, gone in zip(known, back, strict=True):
                    q *= sigma(i) if gone else 1 - sigma(i)
                    after[i] = (None, 1.0) if gone else state[i]
                if q:
                    result[tuple(after)] = result.get(tuple(after), 0.0) + q
        return result

    return move


def conditionals_of(seed=0, mode=MODES[0]):
    model = toy_model(*mode, vocab=3, seed=seed)
    return model, Conditionals(model, 3, 3, (1,))


@pytest.mark.thin(2)
@pytest.mark.parametrize("mode", [MODES[0], MODES[3]], ids="-".join)
@pytest.mark.parametrize("rounds", [1, 2, 3, 5])
def test_mask_predict_follows_its_enumerated_chain(rounds, mode):
    """Chi-square of 6,000 texts of three tokens behind one in the same block; false alarm below 1e-5 a case."""
    model, conditionals = conditionals_of(0, mode)
    law = conditionals.evolve(rounds, mask_predict_move(conditionals, rounds), START)
    assert float(law.sum()) == pytest.approx(1)
    counts = sample_counts(model, {"name": "mask_predict", "steps": rounds}, 4, 3, 3, prompt=(1,))
    assert chi_square_alarm(counts, law) > 1e-5


@pytest.mark.thin(1)
@pytest.mark.parametrize("strategy, eta", [("cap", 0.4), ("rescale", 0.7), ("confidence", 1.0)])
def test_remdm_follows_its_enumerated_chain(strategy, eta):
    """As above, also where a block is complete before the grid is over and is opened again."""
    model, conditionals = conditionals_of()
    law = conditionals.evolve(4, remdm_move(conditionals, 4, strategy, eta), START)
    assert float(law.sum()) == pytest.approx(1)
    spec = {"name": "remdm", "steps": 4, "sigma": strategy, "eta": eta}
    counts = sample_counts(model, spec, 4, 3, 3, prompt=(1,))
    assert chi_square_alarm(counts, law) > 1e-5
    without = conditionals.evolve(4, remdm_move(conditionals, 4, strategy, 0.0), START)
    assert chi_square_alarm(counts, without) < 1e-5, "the test would notice if nothing were re-masked"


@pytest.mark.thin(1)
@pytest.mark.parametrize("strategy", ["cap", "rescale", "confidence"])
def test_remdm_without_remasking_is_ancestral_decoding(strategy):
    """Both against the enumerated law of a grid of three cells; false alarm below 1e-5 a case."""
    model, conditionals = conditionals_of()
    law = conditionals.evolve(3, remdm_move(conditionals, 3, strategy, 0.0), START)
    for spec in ({"name": "remdm", "steps": 3, "sigma": strategy, "eta": 0.0}, {"name": "ancestral", "steps": 3}):
        assert chi_square_alarm(sample_counts(model, spec, 4, 3, 3, prompt=(1,)), law) > 1e-5


def test_remdm_by_confidence_takes_back_what_was_least_sure():
    """By hand: revealed with 0.9 and 0.1, so softmax(-0.9, -0.1) = 0.310, 0.690; from t = 0.5 to s = 0.25 sigma is half
    of that, and a masked token is revealed with probability 0.5."""
    view = view_of(torch.full((1, 3), 1 / 3), torch.tensor([[False, False, True]]), step=2)
    decoder = ReMDM(4, sigma="confidence", eta=1.0)
    grid, revealed_with = decoder.start(view)
    revealed_with[:] = torch.tensor([0.9, 0.1, 1.0])
    for u, taken_back in [(0.15, [True, True]), (0.16, [False, True]), (0.34, [False, True]), (0.35, [False, False])]:
        view = view_of(torch.full((1, 3), 1 / 3), view.is_masked, step=2)
        view.draw = lambda u=u: torch.full((1, 3), u, dtype=torch.float64)
        reveal, remask = decoder.select(view, (grid, revealed_with.clone()))
        assert (reveal[0].tolist(), remask[0].tolist()) == ([False, False, True], [*taken_back, False])


def test_remdm_keeps_to_the_grid():
    """It ends with the grid whatever was re-masked, and steps that reveal nothing cost no forward."""
    model = toy_model(vocab=9)
    for steps in (1, 2, 7, 400):
        spy = Spy(ReMDM(steps, eta=0.02))
        result = engine(model, 6, spy, stop_at_end=False, seq_len=12).generate([[]], 12)
        assert len(spy.steps) == 2 * steps
        assert result.nfe == sum(bool(reveal.any()) for _, reveal, *_ in spy.steps) <= 2 * steps
    assert 12 <= result.nfe < 150
    assert time_grid("linear", 4) == [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("decoder", [MaskPredict(4), PathPlanning(4), PathPlanning(4, eta=50.0)], ids=str)
def test_what_is_masked_after_each_step(decoder):
    """floor(L (T - i) / T) of the L positions that are not prompt, one forward a step, row by row."""
    spy = Spy(decoder)
    result = engine(toy_model(vocab=9), 8, spy, stop_at_end=False, seq_len=20).generate([[], [1, 2, 3]], 17)
    masked = [view.is_masked.sum(1).tolist() for view, *_ in spy.steps if view.step]
    assert masked[:3] == [[6, 3], [4, 2], [2, 1]], "blocks of 8 and 5"
    assert result.nfe == len(spy.steps) == 4 * 3


def test_planned_paths_with_eta_zero_are_those_of_confidence():
    """Known tokens stay, so one position a step is revealed by log p(candidate): the same texts under the same seed."""
    model = toy_model(vocab=9)
    for steps in (7, 20):
        planned = engine(model, 7, PathPlanning(steps, eta=0.0), seed=2).generate([[], []], 14)
        assert planned.nfe == 14, "no forward for a step that reveals nothing"
        if steps == 7:
            assert planned.tokens == engine(model, 7, "confidence", seed=2).generate([[], []], 14).tokens


@pytest.mark.parametrize("eta, often", [(0.0, False), (20.0, True)])
def test_a_large_eta_takes_tokens_back(eta, often):
    spy = Spy(PathPlanning(12, eta=eta))
    engine(toy_model(vocab=9), 12, spy, stop_at_end=False, seq_len=12).generate([[]] * 8, 12)
    n_back = sum(int(remask.sum()) for _, _, remask, _ in spy.steps)
    assert n_back > 100 if often else n_back == 0


@pytest.mark.parametrize(
    "eta, reveal, remask",
    [
        (0.0, [False] * 4, [False] * 4),
        (0.2, [False] * 4, [False] * 4),  # scores -1, -3 where masked, -0.4, -0.1 where known
        (1.0, [True, False, False, False], [False, False, True, False]),  # -1, -3, -2, -0.5
        (9.0, [True, True, False, False], [False, False, True, True]),  # -1, -3, -18, -4.5
    ],
)
def test_eta_weighs_the_known_tokens(eta, reveal, remask):
    """By hand: of four tokens two are shown after the step, those of highest score."""
    is_masked = torch.tensor([[True, True, False, False]])
    planned = torch.tensor([[-1.0, -3.0, -2.0, -0.5]], dtype=torch.float64)
    view = view_of(torch.full((2, 3), 1 / 3), is_masked, planner=lambda candidates: planned)
    decoder = PathPlanning(2, eta=eta)
    got = decoder.select(view, decoder.start(view))
    none = torch.zeros_like(is_masked)
    assert [(none if t is None else t)[0].tolist() for t in got] == [reveal, remask]


@pytest.mark.parametrize("kappa, fractions", [("cosine_md4", [0.866, 0.5, 0]), ("linear", [2 / 3, 1 / 3, 0])])
def test_kappa_is_a_schedule_with_time_running_from_1_to_0(kappa, fractions):
    spy = Spy(PathPlanning(3, kappa=kappa))
    engine(toy_model(vocab=9), 12, spy, stop_at_end=False, seq_len=12).generate([[]], 12)
    after = [int(view.is_masked.sum()) for view, *_ in spy.steps[1:]] + [0]
    assert after == [int(12 * f + 1e-6) for f in fractions]


# ---------------------------------------------------------------------------------------------------------------------
# The planner


def log_probs_of(model, context, live, block_size):
    """(B, V) of a live block behind `context`, by one forward over an empty cache."""
    text = torch.tensor([*([model.end_of_text] if model.config.begin else []), *context])
    cache = model.new_cache(1, model.config.begin + len(context) + block_size)
    with torch.no_grad():
        hidden = block_hidden(model, cache, BlockRows([0], [text], live[None], [len(live)]), Sight(block_size))
        return model.head(hidden)[0].log_softmax(-1)


@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("planner_mode", [None, *MODES[:2]], ids=lambda m: "-".join(m or ["self"]))
def test_what_the_planner_says(planner_mode, mode):
    """Against a forward by hand, in float64: the denoiser at the tokens as they are, another planner with all proposals
    filled in; at every step, over the cache or not, and the planner's forwards are counted."""
    model = toy_model(*mode, vocab=9)
    planner = None if planner_mode is None else toy_model(*planner_mode, vocab=9, seed=5)
    prompt = random_tokens(6, vocab=8, seed=1).tolist()
    spies = []
    for cache in (True, False):
        spy = Spy(PathPlanning(3, eta=2.0), lambda view: view.planned)
        run = engine(model, 4, spy, stop_at_end=False, seq_len=16, planner=planner, cache=cache)
        result = run.generate([prompt], 10)
        assert result.nfe == len(spy.steps) * (1 if planner is None else 2) == 8 * (1 if planner is None else 2)
        spies.append((spy, result.tokens))
    assert spies[0][1] == spies[1][1]
    text = [*prompt, *spies[0][1][0]]
    start = 0
    for view, _, _, planned in spies[0][0].steps:
        start += 4 if view.step == 0 else 0
        candidates = view.candidates[0]
        read = view.tokens[0] if planner is None else candidates
        expected = log_probs_of(planner or model, text[:start], read, 4).gather(-1, candidates[:, None])[:, 0]
        torch.testing.assert_close(planned[0], expected, rtol=0, atol=1e-12)


def test_planners_cache_and_batch_do_not_matter():
    model, planner = (toy_model(vocab=9, dtype=torch.float32, seed=seed) for seed in (0, 5))
    prompts = [[], [1, 2, 3], [8, 5, 0, 8, 1, 1]]
    options = {"seed": 3, "planner": planner, "temperature": 0.8, "document_mask": True}
    for block_size in (1, 4, 5, 14):
        decoder = PathPlanning(5, eta=1.5)
        batch = engine(model, block_size, decoder, **options).generate(prompts, 8)
        assert batch.tokens == engine(model, block_size, decoder, cache=False, **options).generate(prompts, 8).tokens
        assert batch.tokens == [
            engine(model, block_size, decoder, **options).generate([p], 8).tokens[0] for p in prompts
        ]
    own = engine(model, 4, decoder, seed=3).generate(prompts, 8).tokens
    assert own != engine(model, 4, decoder, seed=3, planner=planner).generate(prompts, 8).tokens


def test_a_planner_that_does_not_fit_or_is_not_asked():
    with pytest.raises(ValueError, match=r"planner: its vocabulary .*\(9, 8\) is not that of the model, \(7, 6\)"):
        engine(toy_model(), 4, planner=toy_model(vocab=9))
    with pytest.warns(UserWarning, match=r"planner: Margin.* asked for none; it had no effect"):
        engine(toy_model(), 4, "margin", planner=toy_model()).generate([[]], 4)
