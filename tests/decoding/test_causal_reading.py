"""`view.read(causal=True)`: each token of the live block off the clean row before it, whatever stands before it."""

from __future__ import annotations

import pytest
import torch
from decoding_toy import engine, view_of
from toy import toy_model

from hybrid.decoding.decoder import View
from hybrid.decoding.remasking import CausalCorrector
from hybrid.model.two_stream import two_stream_hidden

VOCAB, END = 9, 8
PROMPTS = [[], [1, 2, 3, END, 5, 6], [4, 4, 1, 2], [3, END], [2, END, 5, 1, 1, 2, 7]]


class Scored:
    """Fills the block at once, and keeps what a causal reading of all that is new there says."""

    def __init__(self) -> None:
        self.found = []

    def start(self, view: View) -> None:
        return None

    def select(self, view: View, state: None):
        canvas, new = view.candidates, view.is_free
        said = torch.full((*canvas.shape, VOCAB), torch.nan, dtype=torch.float64)
        said[new] = view.read(canvas.masked_fill(~view.is_valid, view.mask_token_id), new, causal=True)
        self.found.append(said)
        return view.is_masked, None, canvas


@pytest.mark.parametrize("options", [{}, {"cache": False}, {"document_mask": True}, {"graphs": True}], ids=str)
@pytest.mark.parametrize("prediction", ["in_place", "next_token"])
def test_it_says_what_one_pass_over_the_whole_text_says(prediction, options):
    """In float64 to 1e-12, of rows at different places of their blocks, with the first tokens of texts and documents;
    and the reading changes no text."""
    model = toy_model("causal", prediction, vocab=VOCAB)
    scored = Scored()
    whole = engine(model, 4, scored, seq_len=18, stop_at_end=False, **options).generate(PROMPTS, 10)
    plain = engine(model, 4, {"name": "confidence", "steps": 1}, seq_len=18, stop_at_end=False, **options)
    assert plain.generate(PROMPTS, 10).sequences == whole.sequences
    checked = 0
    for i, (prompt, text) in enumerate(zip(PROMPTS, whole.sequences, strict=True)):
        expected, start = whole_pass(model, prompt, text, "document_mask" in options), len(prompt) // 4 * 4
        for said in scored.found:
            if len(said) < len(PROMPTS) or start >= len(text):
                break  # a row is done, and they are counted anew
            row = said[i, : len(text) - start]
            there = ~row[:, 0].isnan()
            torch.testing.assert_close(row[there], expected[start : start + 4][there], rtol=0, atol=1e-12)
            checked, start = checked + int(there.sum()), start + 4
    assert checked >= 30


def whole_pass(model, prompt, text, has_documents):
    tokens, documents = torch.tensor([text]), None
    if has_documents:  # what is written belongs to the last document of the prompt
        documents = torch.tensor([[prompt[:k].count(END) for k in range(len(text))]])
    nobody, everybody = torch.zeros(1, 0, len(text), dtype=torch.bool), torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad():
        hidden = two_stream_hidden(model, tokens, nobody, 1, documents, everybody)
        return model.head(hidden).log_softmax(-1)


def test_what_it_costs():
    """One forward a reading, and one more a generation if a block begins its text."""
    model = toy_model("causal", vocab=VOCAB)
    for prompt, n in (([], 1), ([1], 1), ([1] * 5, 0)):
        run = engine(model, 4, Scored(), seq_len=16, stop_at_end=False)
        assert run.generate([prompt], 16 - len(prompt)).nfe == 2 * (4 - len(prompt) // 4) + n


def test_the_corrector_puts_back_what_the_causal_law_finds_least_probable():
    """At half time two of four: a token that was known, and one just drawn, which is not shown at all. At the end
    everything is shown, and nothing is read."""
    of_tokens = torch.tensor([0.9, 0.2, 0.1, 0.6], dtype=torch.float64)  # p(token | those before it)
    is_masked, read = torch.tensor([[True, True, False, True]]), []

    def causal(canvas, places, causal=False):
        read.append((canvas.tolist(), causal))
        p = of_tokens[places[0]]
        return torch.stack([p, 1 - p], dim=1).log()

    def at(step):
        sure = torch.tensor([[0.8, 0.2]] * 3, dtype=torch.float64)  # token 0 everywhere
        return view_of(sure, is_masked, step, read=causal, mask_token_id=2)

    corrector = CausalCorrector(steps=2)
    view = at(0)
    reveal, remask = corrector.select(view, corrector.start(view))
    assert reveal.tolist() == [[True, False, False, True]] and remask.tolist() == [[False, False, True, False]]
    assert read == [([[0, 0, 0, 0]], True)]
    reveal, remask = corrector.select(at(1), corrector.start(view))
    assert torch.equal(reveal, is_masked) and remask is None and len(read) == 1
