"""Classifier-free guidance on the prompt, against both distributions by hand."""

import math

import pytest
import torch
from decoding_toy import Spy, engine
from toy import MODES, toy_model

from hybrid.decoding import DECODERS
from hybrid.model.two_stream import two_stream_hidden

PROMPTS = [[1, 2, 3, 0, 5, 6], [], [4]]


def masked_log_probs(model, row, masked, block_size):
    """(m, V) float64 of the masked tokens of one row, by the pass of training."""
    with torch.no_grad():
        return model.head(two_stream_hidden(model, row[None], masked[None, None], block_size)).log_softmax(-1)


@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("block_size", [1, 4, 12])
def test_guided_log_probs_are_those_of_the_formula(block_size, mode):
    """At every step of every row, to 1e-12: prompts over several blocks and inside one, none, a short last block."""
    model, w = toy_model(*mode, vocab=9), 1.5
    spy = Spy(DECODERS["confidence"](), lambda view: view.log_probs)
    run = engine(model, block_size, spy, stop_at_end=False, seq_len=14, guidance=w)
    texts = [p + t for p, t in zip(PROMPTS, run.generate(PROMPTS, 8).tokens, strict=True)]
    starts = [len(p) // block_size * block_size - block_size for p in PROMPTS]
    active = [0, 1, 2]
    checked = 0
    for view, _, _, log_probs in spy.steps:
        if view.step == 0:
            starts = [s + block_size for s in starts]
            active = [i for i in active if starts[i] < len(PROMPTS[i]) + 8]
        for k, i in enumerate(active):
            n, begin = int(view.is_valid[k].sum()), starts[i]
            given = torch.tensor([*texts[i][:begin], *view.tokens[k, :n].clamp(max=8).tolist()])
            masked = torch.zeros(begin + n, dtype=torch.bool)
            masked[begin:] = view.is_masked[k, :n]
            blank = given.clone()
            blank[: len(PROMPTS[i])] = model.mask_token_id
            expected = masked_log_probs(model, given, masked, block_size)
            if PROMPTS[i]:
                other = masked_log_probs(model, blank, masked, block_size)
                expected = ((1 + w) * expected - w * other).log_softmax(-1)
            torch.testing.assert_close(log_probs[k, :n][view.is_masked[k, :n]], expected, rtol=0, atol=1e-12)
            checked += int(masked.sum())
    assert checked >= 24


@pytest.mark.thin(1)
@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_guided_texts_are_the_same_cached_and_not_alone_and_in_a_batch(mode):
    model = toy_model(*mode, vocab=9, dtype=torch.float32)
    for spec in ("first_hitting", {"name": "p2", "steps": 3, "eta": 2.0}, {"name": "remdm", "steps": 5, "eta": 0.5}):
        for block_size in (1, 5):
            options = {"seed": 1, "guidance": 2.0, "document_mask": True}
            batch = engine(model, block_size, spec, **options).generate(PROMPTS, 8)
            uncached = engine(model, block_size, spec, cache=False, **options).generate(PROMPTS, 8)
            alone = [engine(model, block_size, spec, **options).generate([p], 8).tokens[0] for p in PROMPTS]
            assert batch.tokens == uncached.tokens == alone
            assert batch.nfe == uncached.nfe


def test_what_guidance_costs_and_whom_it_leaves_alone():
    model = toy_model(vocab=9)
    plain = engine(model, 4, stop_at_end=False).generate(PROMPTS, 8)
    guided = engine(model, 4, stop_at_end=False, guidance=3.0).generate(PROMPTS, 8)
    assert guided.nfe == 2 * plain.nfe, "both forwards count"
    assert guided.tokens[1] == plain.tokens[1], "no prompt, nothing to be guided by"
    assert guided.tokens[0] != plain.tokens[0]
    zero = engine(model, 4, stop_at_end=False, guidance=0.0).generate(PROMPTS, 8)
    assert (zero.tokens, zero.nfe) == (plain.tokens, plain.nfe)
    assert engine(model, 4, stop_at_end=False, guidance=3.0).generate([[], []], 8).nfe == 8, "and none without prompts"


def test_rows_without_a_prompt_stay_bit_for_bit():
    """Also in float32, where (1 + w) log p - w log p is not log p."""
    model = toy_model(vocab=9, dtype=torch.float32)
    seen = []
    for w in (0.0, 1.7):
        spy = Spy(DECODERS["confidence"](), lambda view: view.log_probs)
        engine(model, 4, spy, guidance=w).generate(PROMPTS, 4)
        seen.append(spy.steps[0][-1])
    assert torch.equal(seen[0][1], seen[1][1]) and not torch.equal(seen[0][2], seen[1][2])


@pytest.mark.parametrize("w", [-0.5, math.inf, math.nan])
def test_guidance_is_checked(w):
    with pytest.raises(ValueError, match=r"guidance: .* must be a finite number of at least 0"):
        engine(toy_model(), 4, guidance=w)
