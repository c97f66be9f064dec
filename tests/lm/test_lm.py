"""The handle of a trained model: block sizes, texts, and what it refuses."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

import hybrid


def test_what_generate_refuses(lm: hybrid.LanguageModel) -> None:
    for prompts, new, options, message in (
        ([[1], [lm.mask_token_id + 1]], 4, {}, r"token \d+ of prompt 1 is not in the vocabulary"),
        ([[1] * 30], 3, {}, "exceed the context of 32"),
        ([[1]], -1, {}, "must be an integer of at least 0"),
        ([[1]], 4, {"block_size": 33}, "block_size: 33 is larger"),
        ([[1]], 4, {"decoder": "nope"}, "decoder: 'nope' is not one of"),
        ([[1]], 4, {"decoder": {"name": "margin", "setps": 1}}, "setps"),
        ([[1]], 4, {"top_k": 1.5}, "top_k: 1.5 must be an integer"),
    ):
        with pytest.raises(ValueError, match=message):
            lm.generate(prompts, new, **options)


def test_a_size_that_was_not_trained_warns_at_the_caller(lm: hybrid.LanguageModel, tokens: Tensor) -> None:
    for call in (
        lambda: lm.nll(tokens, 8),
        lambda: lm.logits(tokens, 8),
        lambda: lm.generate([[1]], 4, block_size=8),
    ):
        with pytest.warns(UserWarning, match=r"block_size: 8 was not trained \(trained: 4, 1\)"):
            call()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm.nll(tokens, 1)
        lm.nll(tokens)


def test_the_default_block_size_is_the_first_that_was_trained(lm: hybrid.LanguageModel, tokens: Tensor) -> None:
    assert torch.equal(lm.nll(tokens).nll, lm.nll(tokens, 4).nll)
    assert torch.equal(lm.logits(tokens), lm.logits(tokens, 4))
    assert lm.generate([[1]], 8).tokens == lm.generate([[1]], 8, block_size=4).tokens
    assert lm.nll(tokens[:, :2]).nll.shape == (3,)  # a row shorter than a block


def test_with_document_mask_only_the_last_document_of_a_prompt_is_continued(
    joined_and_apart: tuple[hybrid.LanguageModel, hybrid.LanguageModel],
) -> None:
    (joined, apart), prompts = joined_and_apart, [[4, 2], [], [3, 1, 1, 5, 2]]
    longer = [[1, 2, 3, joined.tokenizer.end_of_text, *prompt] for prompt in prompts]
    options = {"decoder": "left_to_right", "temperature": 0, "stop_at_end": False}
    alone = joined.generate(prompts, 12, **options).tokens
    assert apart.generate(longer, 12, **options).tokens == alone
    assert [step.tokens for step in apart.stream(longer, 12, **options)][-1] == alone
    assert joined.generate(longer, 12, **options).tokens != alone, "the first document would have mattered"


def test_stream_ends_where_generate_does(lm: hybrid.LanguageModel) -> None:
    prompts = [[1, 2], []]
    steps = list(lm.stream(prompts, 10, seed=2))
    result = lm.generate(prompts, 10, seed=2)
    assert steps[-1].tokens == result.tokens and steps[-1].nfe == result.nfe and steps[-1].done
    assert any(lm.mask_token_id in row for row in steps[0].tokens)
    assert not any(step.done for step in steps[:-1])
