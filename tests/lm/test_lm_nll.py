"""`lm.nll` and `lm.logits`: what counts, what is refused, documents apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hybrid
from hybrid.lm import load


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"tokens": torch.zeros(2, 3)}, r"tokens: \[2, 3\] torch\.float32 is not a non-empty int64 tensor"),
        ({"tokens": torch.zeros(3, dtype=torch.int64)}, r"tokens: \[3\] "),
        ({"tokens": torch.zeros(0, 3, dtype=torch.int64)}, "non-empty"),
        ({"tokens": [[1, 2]]}, "tokens: list is not"),
        ({"tokens": torch.full((1, 4), 10_000)}, r"tokens: 10000 is not in the vocabulary \(0 to \d+\)"),
        ({"tokens": torch.full((1, 4), -1)}, "tokens: -1 is not in the vocabulary"),
        ({"tokens": torch.zeros(1, 33, dtype=torch.int64)}, "rows of 33 exceed the context of 32"),
        ({"block_size": 0}, "block_size: 0 is too small"),
        ({"block_size": "eight"}, "block_size: 'eight' is not a block size"),
        ({"method": "exact"}, "'exact' is the likelihood at block size 1, not 4"),
        ({"method": "guess"}, "method: 'guess' is not one of"),
        ({"draws": 0}, "draws: 0 must be an integer of at least 1, or 'all'"),
        ({"draws": "many"}, "draws: 'many' must be"),
        ({"is_target": [True]}, r"is_target: \[True\] is not a bool tensor \[3, 13\], as tokens is"),
        ({"is_target": torch.ones(3, 12, dtype=torch.bool)}, r"is_target: \[3, 12\] torch.bool is not a bool tensor"),
        ({"is_target": torch.ones(3, 13)}, r"is_target: \[3, 13\] torch.float32 is not"),
    ],
)
def test_what_nll_refuses(arguments: dict, message: str, lm: hybrid.LanguageModel, tokens: Tensor) -> None:
    with pytest.raises(ValueError, match=message):
        lm.nll(**{"tokens": tokens, **arguments})


def test_logits_give_the_likelihood_of_block_size_1(lm: hybrid.LanguageModel, tokens: Tensor) -> None:
    logits = lm.logits(tokens, 1)
    assert logits.shape == (3, 13, lm.tokenizer.vocab_size)
    expected = -logits.double().log_softmax(-1).gather(-1, tokens[..., None]).sum((1, 2))
    torch.testing.assert_close(lm.nll(tokens, 1, "exact").nll, expected, rtol=1e-6, atol=1e-6)


def test_with_document_mask_each_document_has_the_likelihood_that_it_has_alone(
    joined_and_apart: tuple[hybrid.LanguageModel, hybrid.LanguageModel], tokens: Tensor
) -> None:
    """Positions are relative and the first document ends where a block does, so its end changes nothing else."""
    (joined, apart), end = joined_and_apart, joined_and_apart[0].tokenizer.end_of_text
    rows = tokens.masked_fill(tokens == end, 1)
    rows[:, 7] = end
    ways = [(1, "exact", {}), (4, "bound", {"draws": "all"}), (4, "enumerate", {}), (4, "best_order", {})]
    for size, method, options in [*ways, (4, "policy", {"decoder": "margin"})]:
        expected = sum(joined.nll(part, size, method, **options).nll for part in (rows[:, :8], rows[:, 8:]))
        torch.testing.assert_close(apart.nll(rows, size, method, **options).nll, expected, rtol=1e-5, atol=1e-5)
        seen = joined.nll(rows, size, method, **options).nll
        assert ((seen - expected).abs() > 0.1).all(), "the first document would have mattered"
    torch.testing.assert_close(apart.logits(rows)[:, 8:], joined.logits(rows[:, 8:]), rtol=1e-4, atol=1e-4)


def test_likelihoods_do_not_depend_on_what_was_generated_before(trained):
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
    one, other = load(trained), load(trained)
    other.generate([[1]], 4)
    assert torch.equal(one.nll(tokens).nll, other.nll(tokens).nll)
    assert torch.equal(one.logits(tokens), other.logits(tokens))


def test_a_continuation_has_the_likelihood_of_the_whole_less_that_of_its_context(
    lm: hybrid.LanguageModel, tokens: Tensor
) -> None:
    """At block size 1, and for whole blocks of the exact any-order likelihood; where nothing counts it is 0."""
    for size, method in ((1, "exact"), (4, "enumerate")):
        whole, context = lm.nll(tokens, size, method), lm.nll(tokens[:, :8], size, method)
        behind = (torch.arange(13) >= 8).expand(3, -1)
        found = lm.nll(tokens, size, method, is_target=behind)
        torch.testing.assert_close(found.nll, whole.nll - context.nll, rtol=0, atol=1e-4)
        assert found.tokens.tolist() == [5, 5, 5]
        assert lm.nll(tokens, size, method, is_target=torch.zeros_like(behind)).nll.tolist() == [0.0] * 3


@pytest.mark.parametrize("method", ["exact", "bound", "enumerate", "policy", "best_order", "importance"])
def test_what_counts_reaches_every_likelihood(method: str, lm: hybrid.LanguageModel) -> None:
    """Over all ends of one token behind a context that lies in the same block, probabilities sum to 1 (a bound: to no
    more). The token stands inside a block, so that the context before it is seen there too."""
    size = 1 if method == "exact" else 4
    vocab = lm.tokenizer.vocab_size
    rows = torch.tensor([[1, 2, 3, 1, 2, 3, v] for v in range(vocab)])
    is_target = (torch.arange(7) == 6).expand(vocab, -1)
    options = {"decoder": "margin"} if method == "policy" else {}
    draws = "all" if method == "bound" else 2
    found = lm.nll(
        rows,
        size,
        method,
        **({} if method in ("exact", "enumerate") else {"draws": draws}),
        is_target=is_target,
        **options,
    )
    assert float((-found.nll).exp().sum()) == pytest.approx(1, abs=1e-5)  # one token: the bound is tight
