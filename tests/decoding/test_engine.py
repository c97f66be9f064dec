"""The engine and its laws, for every decoder of the table. Their distributions are in test_fixed_order.py,
test_confidence.py and test_remasking.py."""

import itertools

import pytest
import torch
from decoding_toy import BLOCK_DECODERS, Spy, as_name, context_of, engine
from toy import MODES, random_tokens, toy_model

from hybrid import rng
from hybrid.decoding import DECODERS, GenerationConfig
from hybrid.decoding.engine import Engine
from hybrid.model import Transformer
from hybrid.options import build

NEVER_BACK = {"name": "p2", "eta": 0.0, "steps": 4}
REMASKING = [
    "mask_predict",
    "p2",
    "arpc",
    "remdm",
    {"name": "mask_predict", "steps": 3},
    NEVER_BACK,
    {"name": "p2", "eta": 5.0, "steps": 6, "kappa": "cosine_md4"},
    {"name": "remdm", "steps": 6, "sigma": "rescale", "eta": 1.0, "schedule": "cosine_mdlm"},
    {"name": "remdm", "steps": 12, "sigma": "confidence", "eta": 1.0},
]
SPECS = [
    *(name for name in BLOCK_DECODERS if name not in REMASKING),
    {"name": "first_hitting", "steps": 2},
    {"name": "first_hitting", "per_step": 3},
    {"name": "random", "order_seed": 5, "steps": 3, "plan": "cosine"},
    {"name": "left_to_right", "per_step": 2},
    {"name": "ancestral", "steps": 3, "schedule": "cosine_mdlm"},
    {"name": "confidence", "steps": 2},
    {"name": "confidence", "steps": 3, "plan": "cosine", "token": "best"},
    {"name": "confidence", "threshold": 0.5},
    {"name": "confidence", "factor": 1.0},
    {"name": "margin", "threshold": 0.3},
    {"name": "margin", "per_step": 2},
    {"name": "entropy", "threshold": -1.0},
    {"name": "entropy_bounded", "gamma": 2.0},
    {"name": "copula", "canvas": "drawn", "steps": 4, "alpha": 0.5},
    *REMASKING,
]


def modes_of(spec):
    """Every entry of the table is tried in all modes that suit it, its variants in two that cover each choice."""
    modes = MODES if isinstance(spec, str) else [MODES[0], MODES[3]]
    return [mode for mode in modes if context_of(spec) in (mode[0], "block_causal")]


@pytest.mark.thin(24)
@pytest.mark.parametrize(
    "spec, mode", [pytest.param(s, m, id=f"{as_name(s)}-{'-'.join(m)}") for s in SPECS for m in modes_of(s)]
)
def test_rows_are_the_same_alone_and_in_a_batch_cached_and_not(spec, mode):
    """float32; ragged prompts: an empty one, one ending inside a block, one with an end of text; a short last block."""
    model = toy_model(*mode, vocab=9, dtype=torch.float32)
    prompts = [[], [1, 2, 3], [8, 5, 0, 8, 1, 1]]
    for block_size in (1, 4, 5, 14) if isinstance(spec, str) and mode == MODES[0] else (4, 14):
        batch = engine(model, block_size, spec, seed=3).generate(prompts, 8)
        uncached = engine(model, block_size, spec, seed=3, cache=False).generate(prompts, 8)
        alone = [engine(model, block_size, spec, seed=3).generate([p], 8).tokens[0] for p in prompts]
        assert batch.tokens == uncached.tokens == alone
        # A causal reading of next_token costs a forward more where nothing before the block is read yet.
        assert batch.nfe == uncached.nfe or (context_of(spec), mode[1]) == ("causal", "next_token")


BY_ITSELF = [spec for spec in SPECS if not as_name(spec).startswith("copula")]  # which writes what it has drawn


@pytest.mark.parametrize("spec", BY_ITSELF, ids=as_name)
def test_revealed_tokens_change_only_where_they_are_remasked(spec):
    """Within the live block; the prompt and finished blocks never change."""
    model = toy_model(context_of(spec), vocab=9)
    spy = Spy(build(DECODERS, spec, "decoder"))
    run = engine(model, 5, spy)
    seen: dict[tuple[int, int], int] = {}
    for progress in run.stream([[1], [2, 3]], 11):
        for row, tokens in enumerate(progress.tokens):
            n_finished = (len(tokens) + 1 + row - 1) // 5 * 5 - 1 - row  # new tokens before the live block
            for position, token in enumerate(tokens):
                if token != model.mask_token_id and (position < n_finished or spec not in REMASKING):
                    assert seen.setdefault((row, position), token) == token
    assert progress.done
    for (view, reveal, remask, _), (after, *_) in itertools.pairwise(spy.steps):
        if after.step == 0:
            continue
        stays = ~view.is_masked & ~remask
        assert torch.equal(after.tokens[stays], view.tokens[stays])
        assert torch.equal(after.tokens[view.is_fixed], view.tokens[view.is_fixed])
        assert torch.equal(after.is_masked, view.is_masked & ~reveal | remask & after.is_masked)
        assert not (remask & (view.is_fixed | ~view.is_valid)).any(), "it asks for nothing that it may not"
    taken_back = any(bool((remask & ~view.is_masked).any()) for view, _, remask, _ in spy.steps)
    assert taken_back == (spec in REMASKING and spec != NEVER_BACK)


@pytest.mark.thin(24)
@pytest.mark.parametrize(
    "spec, mode", [pytest.param(s, m, id=f"{as_name(s)}-{'-'.join(m)}") for s in SPECS for m in modes_of(s)]
)
def test_a_certain_model_is_reproduced(spec, mode, monkeypatch):
    """An oracle that knows the text puts all mass on it; every decoder must then write it, whatever its order."""
    model = toy_model(*mode, vocab=9)
    text = random_tokens(1, 14, vocab=8, seed=4)[0]  # without end of text
    if context_of(spec) == "causal" and mode[1] == "in_place":
        pytest.skip("a clean row says two things, as what is read of it")

    def know(network, tokens, pattern, cache, latent):  # the state of a row is the token that it predicts
        slots = pattern.slots
        at = torch.arange(slots.start, slots.stop) if isinstance(slots, slice) else slots
        at = pattern.reading().select_queries(at.expand_as(tokens))
        predicted = text[at.clamp(max=13)]  # in place: slot = position; next_token: slot l holds text token l - 1
        return predicted.double()[..., None].expand(*at.shape, network.config.dim)

    def speak(network, hidden):
        return hidden.new_full((*hidden.shape[:-1], 9), -1e9).scatter(-1, hidden[..., :1].round().long(), 0.0)

    monkeypatch.setattr(Transformer, "forward", know)
    monkeypatch.setattr(Transformer, "head", speak)
    for block_size in (1, 3, 14):
        got = engine(model, block_size, spec).generate([text[:4].tolist()], 10)
        assert got.tokens[0] == text[4:].tolist()


def test_forwards_are_the_decoders_steps_and_no_more():
    """No commit pass, no prefill pass, no forward for a step in which nothing is revealed."""
    model = toy_model(vocab=9)
    options = {"stop_at_end": False, "seq_len": 40}
    assert engine(model, 8, **options).generate([[]], 32).nfe == 32
    assert engine(model, 8, {"name": "confidence", "steps": 2}, **options).generate([[]], 32).nfe == 8
    assert engine(model, 8, **options).generate([[1] * 16], 16).nfe == 16
    assert engine(model, 8, **options).generate([[1] * 13], 3).nfe == 3, "a started block has three tokens left"
    assert engine(model, 8, {"name": "ancestral", "steps": 1000}, **options).generate([[]], 32).nfe <= 32


def test_an_autoregressive_step_is_one_row(monkeypatch):
    """next_token at block size 1: each forward is the token that was just written, nothing else."""
    model = toy_model("causal", "next_token", vocab=9)
    rows = []
    forward = Transformer.forward

    def spy(network, tokens, *arguments, **more):
        rows.append(tokens.shape[1])
        return forward(network, tokens, *arguments, **more)

    monkeypatch.setattr(Transformer, "forward", spy)
    engine(model, 1, stop_at_end=False).generate([[1, 2, 3]], 5)
    assert rows == [4, 1, 1, 1, 1], "begin and prompt first"


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
    with pytest.raises(ValueError, match=r"prompts: token 8 of prompt 0 is not in the vocabulary \(0 to 6\)"):
        run.generate([[8]], 2)
    with pytest.raises(ValueError, match=r"max_new_tokens: -1 must be an integer of at least 0"):
        run.generate([[1]], -1)


def test_a_stuck_decoder_is_named(monkeypatch):
    class Stuck:
        def start(self, view):
            return None

        def select(self, view, state):
            return torch.zeros_like(view.is_masked), None

    monkeypatch.setattr("hybrid.decoding.decoder.MAX_IDLE_STEPS", 5)
    with pytest.raises(ValueError, match=r"decoder: .*Stuck.* revealed nothing in 6 steps"):
        Engine(toy_model(), 14, GenerationConfig(4, Stuck())).generate([[]], 4)


def test_a_decoder_may_remask_within_its_block_but_not_the_prompt():
    """A user's decoder: reveals all, wants all of it masked again, and reveals again."""
    seen = []

    class TwoPasses:
        def start(self, view):
            return None

        def select(self, view, state):
            seen.append(view)
            again = torch.ones_like(view.is_masked) if view.step == 0 else None
            return view.is_masked, again

    model = toy_model(vocab=9)
    got = Engine(model, 14, GenerationConfig(4, TwoPasses(), stop_at_end=False)).generate([[1, 2]], 6)
    assert got.nfe == 4, "two blocks, two passes each"
    assert [view.is_fixed.tolist() for view in seen[:2]] == [[[True, True, False, False]]] * 2
    assert [view.is_masked.tolist() for view in seen[:2]] == [[[False, False, True, True]]] * 2
    assert seen[1].tokens[0, :2].tolist() == [1, 2]


def test_a_finished_row_is_left_alone_in_whatever_company():
    """At its third step a decoder wants the last position of every block back; a row with one token to write has been
    finished by then."""

    class Late:
        def start(self, view):
            return None

        def select(self, view, state):
            back = torch.zeros_like(view.is_masked)
            back[:, -1] = view.step == 2
            return view.is_masked & (view.is_masked.cumsum(-1) == 1), back

    prompts = [[1, 2, 3], [1]]
    run = Engine(toy_model(vocab=9), 14, GenerationConfig(4, Late(), stop_at_end=False))
    together = run.generate(prompts, 3)
    assert together.tokens == [run.generate([p], 3).tokens[0] for p in prompts]
    assert together.nfe > run.generate(prompts[:1], 3).nfe


def test_options_of_decoders_are_checked():
    for spec, message in [
        ({"name": "confidence", "steps": 0}, "steps: 0 is too small"),
        ({"name": "confidence", "steps": 2, "threshold": 0.5}, "either steps or threshold"),
        ({"name": "confidence", "factor": 1.0, "threshold": 0.5}, "factor: give either threshold or factor, not both"),
        ({"name": "confidence", "factor": 0.0}, "factor: 0.0 must be above 0"),
        ({"name": "confidence", "token": "bset"}, "did you mean 'best'"),
        ({"name": "first_hitting", "steps": 2, "per_step": 2}, "per_step: give either steps or per_step, not both"),
        ({"name": "margin", "per_step": 2, "threshold": 0.1}, "threshold: give either per_step or threshold"),
        ({"name": "random", "per_step": 0}, "per_step: 0 is too small"),
        ({"name": "random", "plan": "cosine"}, "plan: 'cosine' says how `steps` share a block; give steps too"),
        ({"name": "random", "plan": "cosinus", "steps": 2}, "did you mean 'cosine'"),
        ({"name": "entropy_bounded", "gamma": -1.0}, "gamma: -1.0 is too small"),
        ({"name": "mask_predict", "steps": 0}, "steps: 0 is too small"),
        ({"name": "p2", "eta": -0.5}, "eta: -0.5 is too small"),
        ({"name": "p2", "kappa": "lienar"}, "did you mean 'linear'"),
        ({"name": "remdm", "eta": 1.5}, "eta: 1.5 must be from 0"),
        ({"name": "remdm", "sigma": "capp"}, "did you mean 'cap'"),
        ({"name": "entropy", "threshold": 0.5}, "minus an entropy"),
        ({"name": "ancestral", "schedule": "lienar"}, "did you mean 'linear'"),
        ("first_hiting", "did you mean 'first_hitting'"),
    ]:
        with pytest.raises(ValueError, match=message):
            build(DECODERS, spec, "decoder")


@pytest.mark.thin(3)
@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("block_size", [1, 4])
def test_a_sliding_context(mode, block_size):
    """Beyond `seq_len` the last tokens are seen and no others; the text is the same with the cache and without, alone
    and beside rows that are elsewhere. Before that it is the text that does not slide."""
    model = toy_model(*mode, vocab=9, seed=2)
    options = {"stop_at_end": False, "seed": 5, "seq_len": 12}
    prompts = [[1, 2, 3, 4, 5, 6, 7], [], [3, 3, 1]]
    sliding = engine(model, block_size, slide=True, **options).generate(prompts, 30).tokens
    assert [len(row) for row in sliding] == [30] * 3
    assert engine(model, block_size, slide=True, cache=False, **options).generate(prompts, 30).tokens == sliding
    for row, prompt in enumerate(prompts):
        alone = engine(model, block_size, slide=True, **options).generate([prompt], 30).tokens[0]
        assert alone == sliding[row]
    assert engine(model, block_size, **options).generate([[]], 12).tokens[0] == sliding[1][:12]
    wide = engine(model, block_size, **{**options, "seq_len": 64}).generate(prompts, 30).tokens
    assert wide != sliding, "what slid out would have mattered"


def test_what_slid_out_is_not_seen():
    """One layer, so that nothing acts through what was computed from it: the text behind equal ends is equal."""
    model = toy_model(vocab=9, n_layers=1)
    run = engine(model, 4, slide=True, stop_at_end=False, seq_len=12)
    ends = [[7, 1, 2, 3, 1, 4, 2, 6, *([5] * 8)], [2, 6, 3, 3, 0, 1, 1, 7, *([5] * 8)]]
    texts = run.generate(ends, 8, row_keys=[1, 1]).tokens
    assert texts[0] == texts[1]
    seen = [[*ends[0][:8], *([0] * 8)], ends[1]]
    assert run.generate(seen, 8, row_keys=[1, 1]).tokens[0] != texts[0], "what has not slid out matters"


def test_a_part_of_a_batch_is_what_it_is_in_the_whole():
    """Ranks may share a batch: the keys of all prompts say which part is whose, equal prompts among them."""
    model, prompts = toy_model(vocab=9), [[], [], [1, 2], []]
    whole = engine(model, 4).generate(prompts, 12).tokens
    row_keys = rng.row_keys(prompts)
    parts = [engine(model, 4).generate(prompts[i:j], 12, row_keys=row_keys[i:j]).tokens for i, j in ((0, 1), (1, 4))]
    assert [row for part in parts for row in part] == whole
    assert whole[0] != whole[1]
