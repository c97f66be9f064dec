"""Where the text of speculation in float32 is not that of plain decoding, two tokens tie within rounding."""

from __future__ import annotations

import pytest
import torch
from decoding_toy import engine
from torch import Tensor
from toy import nll_of, random_tokens, toy_model

from hybrid import rng
from hybrid.decoding.results import Generation
from hybrid.decoding.sampling import gumbel
from hybrid.model import Transformer

VOCAB = 7


def with_twins(kind: str) -> Transformer:
    """A float32 network that can hardly tell tokens 2 and 3 apart: their logits differ in the last bits."""
    model = toy_model("causal", kind, vocab=VOCAB, seed=1, dtype=torch.float32)
    with torch.no_grad():
        model.head_matrix()[3] = model.head_matrix()[2] * (1 + 1e-7)
    return model


def law_behind(model: Transformer, prefix: list[int]) -> Tensor:
    """(V,) log-probabilities of the token behind a prefix, in one pass over whole texts."""
    rows = torch.tensor([[*prefix, token] for token in range(VOCAB)])
    is_last = (torch.arange(rows.shape[1]) == len(prefix)).expand(rows.shape)
    return -nll_of(model, rows, 1, "causal", is_target=is_last).nll.double()


def first_differences(one: Generation, other: Generation) -> list[tuple[int, int]]:
    """The number of each text that differs, and where."""
    pairs = enumerate(zip(one.sequences, other.sequences, strict=True))
    return [(k, next(i for i, (s, t) in enumerate(zip(a, b, strict=True)) if s != t)) for k, (a, b) in pairs if a != b]


@pytest.mark.slow
@pytest.mark.parametrize("kind, rule, temperature", [("in_place", "match", 0.0), ("next_token", "shared", 1e-5)])
def test_the_first_difference_in_float32_is_a_tie(kind: str, rule: str, temperature: float) -> None:
    """In exact arithmetic the tokens that plain decoding and speculation wrote have the two best perturbed scores,
    log p / T + g with Gumbel noise g, which differ by no more than float32 has been seen to err there.

    By itself a small network in float32 writes 150 equal texts. So two of its tokens are made to tie nearly everywhere,
    and the temperature is so low that noise and rounding both count.
    """
    model, options = with_twins(kind), {"noise": "gumbel", "seed": 5, "stop_at_end": False, "temperature": temperature}
    prompts = [random_tokens(1, i % 9, vocab=6, seed=i)[0].tolist() for i in range(150)]
    keys = rng.row_keys(prompts)
    speculative = {"name": "speculative", "rule": rule, "length": 6}
    plain, found = (
        engine(model, 4, decoder, seq_len=32, **options).generate(prompts, 20)
        for decoder in ("autoregressive", speculative)
    )
    exact = with_twins(kind).double()
    differences = first_differences(plain, found)
    assert differences, "nothing is shown"
    for k, place in differences[:8]:
        prefix = plain.sequences[k][:place]
        law = law_behind(exact, prefix)
        error = (law_behind(model, prefix) - law).abs().max() + torch.finfo(torch.float32).eps * law.abs().max()
        scores, rounding = law, 2 * error
        if temperature:
            u = rng.uniform(5, rng.TOKEN, torch.tensor([keys[k]]), place, 0)
            scores, rounding = law / temperature + gumbel(u, VOCAB)[0], 2 * error / temperature
        best, tokens = scores.topk(2)
        assert {plain.sequences[k][place], found.sequences[k][place]} == set(tokens.tolist())
        assert best[0] - best[1] <= rounding
