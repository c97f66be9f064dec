"""End-of-text in generation: the documents of a prompt, against the pass of training, and where a text stops."""

import itertools

import pytest
import torch
from decoding_toy import Spy, engine
from toy import MODES, toy_model

from hybrid.decoding import DECODERS
from hybrid.model.two_stream import two_stream_hidden

END = 8
# The end of a document: first, in the middle, twice, at the end of a block of 4, last; and a prompt of one document.
PROMPTS = [[1, 2, END, 3], [END, 4, 5], [2, 0, 1, END, 6, END], [3, 1, 2, 0, 7, 5, 1, END], [], [4, 2]]


def last_document(prompt: list[int], length: int) -> list[int]:
    """How many end-of-text tokens of the prompt stand before each of `length` tokens."""
    return [sum(token == END for token in prompt[:i]) for i in range(length)]


@pytest.mark.thin(6)
@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("block_size", [1, 4, 5])
@pytest.mark.parametrize("cache", [True, False], ids=["cached", "anew"])
def test_documents_of_a_prompt_are_kept_apart_as_in_training(block_size, mode, cache):
    """At every step of every row of a batch that rows leave at different times, to 1e-12."""
    model = toy_model(*mode, vocab=END + 1, seed=1)
    spy = Spy(DECODERS["confidence"](), lambda view: view.log_probs)
    run = engine(model, block_size, spy, stop_at_end=False, document_mask=True, cache=cache, seed=4)
    texts = [p + t for p, t in zip(PROMPTS, run.generate(PROMPTS, 6).tokens, strict=True)]
    starts = [len(p) // block_size * block_size - block_size for p in PROMPTS]
    active, checked, mattered = list(range(len(PROMPTS))), 0, 0.0
    for view, _, _, log_probs in spy.steps:
        if view.step == 0:
            starts = [s + block_size for s in starts]
            active = [i for i in active if starts[i] < len(PROMPTS[i]) + 6]
        for k, i in enumerate(active):
            n, begin, prompt = int(view.is_valid[k].sum()), starts[i], PROMPTS[i]
            masked = torch.zeros(begin + n, dtype=torch.bool)
            masked[begin:] = view.is_masked[k, :n]
            given = torch.tensor([*texts[i][:begin], *view.tokens[k, :n].tolist()]).masked_fill(masked, 0)
            if not masked.any() or END in given[len(prompt) :]:  # in training a document would end there
                continue
            documents = torch.tensor([last_document(prompt, begin + n)])
            with torch.no_grad():
                apart, joined = (
                    model.head(two_stream_hidden(model, given[None], masked[None, None], block_size, d)).log_softmax(-1)
                    for d in (documents, None)
                )
            torch.testing.assert_close(log_probs[k, :n][view.is_masked[k, :n]], apart, rtol=0, atol=1e-12)
            checked += int(masked.sum())
            mattered = max(mattered, float((apart - joined).abs().max()))
    assert checked >= 24 and mattered > 0.1, "what is seen of the earlier documents would change it"


@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("block_size", [1, 4])
def test_behind_an_end_of_text_a_prompt_is_continued_as_if_it_stood_alone(block_size, mode):
    """Positions are relative: where blocks begin at the same places, the text of the last document is the same. The
    most probable tokens from left to right, so that no noise depends on the position."""
    model = toy_model(*mode, vocab=END + 1, seed=1)
    options = {"stop_at_end": False, "temperature": 0, "seq_len": 24}
    own = [[1, 2, 3], [], [5, 0, 7, 7, 2]]
    alone = engine(model, block_size, "left_to_right", **options).generate(own, 9).tokens
    for before in ([4, 4, 1, END], [0, END, 3, 2, 6, 1, 5, END]):
        prompts = [before + prompt for prompt in own]
        apart, joined = (
            engine(model, block_size, "left_to_right", document_mask=mask, **options).generate(prompts, 9).tokens
            for mask in (True, False)
        )
        assert apart == alone
        assert joined != alone, "the earlier document would have mattered"


@pytest.mark.parametrize("mode", [MODES[0], MODES[3]], ids="-".join)
def test_an_end_of_text_of_the_prompt_does_not_stop_the_text(mode):
    """Wherever it stands in the live block: the first one of the new tokens does, and is the last of them."""
    model = toy_model(*mode, vocab=5)
    prompts = [[4, 0], [0, 4], [1, 2, 4], [0, 1, 1, 0, 4, 1], [4], [3, 2, 1, 4]]
    lengths = set()
    for seed, new_tokens in itertools.product(range(5), (1, 3, 8)):
        stopped = engine(model, 4, seed=seed).generate(prompts, new_tokens).tokens
        whole = engine(model, 4, seed=seed, stop_at_end=False).generate(prompts, new_tokens).tokens
        assert stopped == [text[: text.index(4) + 1] if 4 in text else text for text in whole]
        lengths |= {len(text) for text in stopped}
    assert len(lengths) > 3, "texts of many lengths"
