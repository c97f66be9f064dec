"""Tokens are drawn where they are revealed: at other positions only for a decoder that reads what is drawn there."""

from __future__ import annotations

import pytest
import torch
from decoding_toy import as_name, engine
from toy import MODES, toy_model

from hybrid.decoding.denoiser import Network
from hybrid.decoding.sampling import Sampling
from hybrid.decoding.step import Step

READS_DISTRIBUTIONS = [
    {"name": "margin", "per_step": 2},
    {"name": "entropy", "threshold": -1.0},
    {"name": "entropy_bounded", "gamma": 1.0},
    {"name": "confidence", "token": "best", "steps": 3},
]
READS_NOTHING = [{"name": "first_hitting", "per_step": 2}, "left_to_right", {"name": "ancestral", "steps": 5}]
READS_CANDIDATES = [{"name": "confidence", "steps": 3}, "mask_predict"]


@pytest.mark.parametrize("decoder", READS_DISTRIBUTIONS + READS_NOTHING + READS_CANDIDATES, ids=as_name)
def test_texts_do_not_depend_on_where_tokens_are_drawn(decoder, monkeypatch):
    """As if all were drawn at once; confidences too."""

    def write():
        told = []
        run = engine(model, 5, decoder, stop_at_end=False, top_p=0.9, temperature=1.3)
        for state in run.stream([[], [1, 2]], 11, watch=lambda row, change: told.append((row, change.revealed))):
            last = state
        return last.tokens, told

    model = toy_model(*MODES[0], dtype=torch.float32)
    lazily, drawn = write(), Step._drawn

    def at_once(self, log_probs, places):
        prediction = drawn(self, log_probs, places)
        assert prediction.candidates is not None
        return prediction

    monkeypatch.setattr(Step, "_drawn", at_once)
    assert write() == lazily


@pytest.mark.parametrize("decoder", READS_DISTRIBUTIONS + READS_NOTHING, ids=as_name)
def test_a_token_is_drawn_once(decoder, monkeypatch):
    """14 and 12 are written, up to where the last blocks end: a draw takes several passes over a distribution."""
    draws, draw = [], Sampling.draw

    def count(self, log_probs, uniform):
        draws.append(len(log_probs))
        return draw(self, log_probs, uniform)

    monkeypatch.setattr(Sampling, "draw", count)
    engine(toy_model(*MODES[3]), 5, decoder, stop_at_end=False).generate([[], [1, 2]], 11)
    assert sum(draws) == 14 + 12


@pytest.mark.parametrize("decoder", READS_NOTHING, ids=as_name)
def test_the_head_sees_what_is_revealed_alone_for_a_decoder_that_does_not_look(decoder, monkeypatch):
    rows, log_probs = [], Network.log_probs

    def count(self, hidden):
        rows.append(len(hidden))
        return log_probs(self, hidden)

    monkeypatch.setattr(Network, "log_probs", count)
    engine(toy_model(*MODES[3]), 5, decoder, stop_at_end=False).generate([[], [1, 2]], 11)
    assert sum(rows) == 14 + 12
