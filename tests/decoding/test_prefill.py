"""Long prompts are read in pieces, which bounds the memory of attention: to rounding the same as in one."""

from __future__ import annotations

import pytest
import torch
from decoding_toy import Spy, engine
from toy import MODES, toy_model

from hybrid.decoding import denoiser
from hybrid.decoding.fixed_order import LeftToRight

PROMPTS = [[1, 2, 3, 6, 5] * 8 + [4], [2], [], [5, 1, 6, 2] * 6 + [3]]  # 41, 1, 0 and 25 tokens


@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("block_size", [1, 4])
@pytest.mark.parametrize("slide", [False, True])
def test_a_prompt_read_in_pieces_says_the_same(mode, block_size, slide, monkeypatch):
    """Ragged prompts of several documents, with guidance: all distributions equal to 1e-12 in float64."""
    model = toy_model(*mode)
    options = {"slide": slide, "seq_len": 12 if slide else 50, "stop_at_end": False, "document_mask": True}
    options["guidance"] = 0.7
    read: list[int] = []
    block_hidden = denoiser.block_hidden

    def spy(model, cache, rows, *args):
        read.append(rows.n_pending)
        return block_hidden(model, cache, rows, *args)

    monkeypatch.setattr(denoiser, "block_hidden", spy)

    def distributions() -> tuple[list[torch.Tensor], list[list[int]]]:
        decoder = Spy(LeftToRight(), lambda view: view.log_probs)
        result = engine(model, block_size, decoder, **options).generate(PROMPTS, 6)
        return [look for *_, look in decoder.steps], result.tokens

    monkeypatch.setattr(denoiser, "MAX_SCORES", 1 << 7)
    pieces, tokens = distributions()
    assert max(read) <= (12 if slide else 4) + model.config.begin
    monkeypatch.setattr(denoiser.Network, "_pieces", lambda self, pending: iter(()))
    read.clear()
    whole, expected = distributions()
    assert max(read) >= 40 and tokens == expected
    assert len(pieces) == len(whole)
    for a, b in zip(pieces, whole, strict=True):
        known = a.isfinite()
        assert torch.equal(known, b.isfinite()) and float((a - b)[known].abs().max()) < 1e-12


def test_the_window_bounds_what_is_read_at_once(monkeypatch):
    """However long the prompt: slots that one forward attends to."""
    spans: list[int] = []
    attend = toy_model().attend

    def spy(q, k, v, pattern):
        spans.append(q.shape[2] * k.shape[2])
        return attend(q, k, v, pattern)

    model = toy_model()
    model.attend = spy
    result = engine(model, 4, slide=True, seq_len=16, stop_at_end=False).generate([[1, 2, 3] * 300], 5)
    assert len(result.tokens[0]) == 5 and max(spans) <= 2 * 16 * 2 * 16


def test_pieces_count_as_one_forward(monkeypatch):
    plain = engine(toy_model(), 4, seq_len=60, stop_at_end=False).generate([[1, 2, 3] * 15], 6)
    monkeypatch.setattr(denoiser, "MAX_SCORES", 1)
    pieces = engine(toy_model(), 4, seq_len=60, stop_at_end=False).generate([[1, 2, 3] * 15], 6)
    assert (pieces.tokens, pieces.nfe) == (plain.tokens, plain.nfe)
