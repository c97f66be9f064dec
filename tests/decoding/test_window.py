"""A context that slides: what each row sees, against one dense mask over the whole text."""

import pytest
import torch
from decoding_toy import Spy, engine
from toy import MODES, toy_model

from hybrid.decoding import DECODERS
from hybrid.model.attention import Eager
from hybrid.model.masks import TwoStream
from hybrid.model.two_stream import two_stream_hidden

WINDOW = 12
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [3, 3, 1]]


class Windowed(TwoStream):
    """A row sees no token that stands more than WINDOW - B before its own block."""

    def dense(self):
        queries, keys = self.queries.as_queries(), self.keys.as_keys()
        return super().dense() & (keys.position >= queries.start + self.rows.block_size - WINDOW)


@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("block_size", [1, 4, 5])
def test_a_block_and_what_it_sees_are_as_long_as_the_context(block_size, mode, monkeypatch):
    """Two layers, so that finished blocks have a window of their own; every step of every row, to 1e-12."""
    model, reference = toy_model(*mode, vocab=9, seed=2), toy_model(*mode, vocab=9, seed=2)
    reference.attend = Eager()
    spy = Spy(DECODERS["confidence"](steps=2), lambda view: view.log_probs)
    run = engine(model, block_size, spy, slide=True, stop_at_end=False, seq_len=WINDOW)
    texts = [p + t for p, t in zip(PROMPTS, run.generate(PROMPTS, 22).tokens, strict=True)]
    starts = [len(p) // block_size * block_size - block_size for p in PROMPTS]
    active, checked = [0, 1], 0
    monkeypatch.setattr("hybrid.model.two_stream.TwoStream", Windowed)
    for view, _, _, log_probs in spy.steps:
        if view.step == 0:
            starts = [s + block_size for s in starts]
            active = [i for i in active if starts[i] < len(PROMPTS[i]) + 22]
        for k, i in enumerate(active):
            masked = torch.zeros(starts[i] + block_size, dtype=torch.bool)
            masked[starts[i] :] = view.is_masked[k]
            if not masked.any():
                continue
            text = torch.tensor([*texts[i][: starts[i]], *view.tokens[k].tolist()]).masked_fill(masked, 0)
            with torch.no_grad():
                hidden = two_stream_hidden(reference, text[None], masked[None, None], block_size)
                expected = reference.head(hidden).log_softmax(-1)
            torch.testing.assert_close(log_probs[k][view.is_masked[k]], expected, rtol=0, atol=1e-12)
            checked += starts[i] > WINDOW
    assert checked >= 8, "many blocks stand where something has slid out"
