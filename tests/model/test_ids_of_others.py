"""Ids that published checkpoints have: rows of padding, a begin token of its own, several tokens that end a text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from decoding_toy import engine
from toy import MODES, nll_of, random_tokens, toy_model

import hybrid
from hybrid.config import check, load_config
from hybrid.data.tokenizers import ByteTokenizer
from hybrid.lm import LanguageModel
from hybrid.model import ModelConfig
from hybrid.model.build import build_model, n_parameters
from hybrid.model.two_stream import two_stream_hidden
from hybrid.text.continuation import continuation, spelled


def test_padding_has_rows_and_probability() -> None:
    tokens, masked = random_tokens(2, 6), torch.ones(2, 1, 6, dtype=torch.bool)
    for tied in (False, True):
        model = toy_model(vocab_size=10, tied_embeddings=tied)
        assert (model.vocab_size, model.mask_token_id, model.end_of_text) == (10, 10, 6)
        assert model.embedding.num_embeddings == 11 and model.head_matrix().shape == (10, 16)
        law = model.head(two_stream_hidden(model, tokens, masked, 3)).softmax(-1)
        assert (law[:, 7:] > 0).all() and law.shape[-1] == 10
        assert n_parameters(model.config, 7) == model.n_parameters()
    assert toy_model(vocab_size=10, mask_token_id=8).embedding.num_embeddings == 10


def test_padding_that_is_drawn_has_no_text(tmp_path: Path) -> None:
    sizes = ["model.dim=8", "model.n_layers=1", "model.n_heads=2", "data.seq_len=64", "model.vocab_size=4000"]
    config, tokenizer = load_config(None, [*sizes, "objective.block_size=4"]), ByteTokenizer()
    model = build_model(config.model, tokenizer.vocab_size, tokenizer.end_of_text, torch.device("cpu"), seed=0)
    made = LanguageModel(config, tokenizer, model.eval())
    for lm in (made, hybrid.load(made.save(tmp_path / "saved"))):
        (new,) = lm.generate(["a"], 60, seed=1).tokens
        assert max(new) >= 257 and lm.tokenizer.decode(new) == lm.tokenizer.decode([i for i in new if i < 257])
        assert spelled(lm.tokenizer, [97, 300, 98]) == "ab"
        assert lm.nll(torch.tensor([[97, 3999]])).nll.isfinite().all()
        with pytest.raises(ValueError, match=r"token id 4000 is outside the vocabulary, 0 to 3999; it is the mask"):
            lm.tokenizer.decode([4000])


@pytest.mark.parametrize("context", ["block_causal", "causal"])
def test_another_begin_token_stands_before_the_text_and_ends_none(context: str) -> None:
    """A model whose end of text is that id reads the same, in both passes, and stops elsewhere."""
    own, others = toy_model(context, "next_token", begin_token_id=3), toy_model(context, "next_token")
    as_end = toy_model(context, "next_token")
    as_end.begin_token_id, as_end.end_of_text = 3, 3
    tokens = random_tokens(3, 7)
    for size in (1, 3):
        law = nll_of(own, tokens, size, draws=4).nll
        assert torch.equal(law, nll_of(as_end, tokens, size, draws=4).nll)
        assert not torch.isclose(law, nll_of(others, tokens, size, draws=4).nll).any()
        texts = [
            engine(model, size, stop_at_end=False).generate([[], [1, 2], []], 9).tokens
            for model in (own, as_end, others)
        ]
        assert texts[0] == texts[1] != texts[2]
    ended = engine(own, 3).generate([[]] * 20, 9).tokens
    assert any(3 in text[:-1] for text in ended)


@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_the_first_of_several_end_tokens_ends_a_text(mode: tuple[str, str]) -> None:
    model = toy_model(*mode, end_token_ids=[2, 5])
    prompts = [[], [2, 1], [1]] * 8
    whole = engine(model, 4, stop_at_end=False).generate(prompts, 10).tokens
    found = engine(model, 4).generate(prompts, 10)
    seen = set()
    for text, cut, reason in zip(whole, found.tokens, found.finish_reasons, strict=True):
        n = next((i + 1 for i, token in enumerate(text) if token in (2, 5, 6)), 10)
        assert cut == text[:n] and (reason == "end_of_text") == (cut[-1] in (2, 5, 6))
        seen.add(cut[-1])
    assert seen >= {2, 5, 6}


def test_each_end_token_is_cut_from_the_text_as_end_of_text_is() -> None:
    tokenizer = ByteTokenizer()
    for end in (46, tokenizer.end_of_text):
        assert continuation(tokenizer, [97], [98, end], ends=[46]) == "b"
        assert continuation(tokenizer, [97, end], [98, end, 99], between="|", ends=[46]) == "b|c"
    assert continuation(tokenizer, [97], [98, 46]) == "b."


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"vocab_size": 6}, r"model.vocab_size: 6 is less than the 7 ids of the tokenizer"),
        ({"begin_token_id": 7}, r"model.begin_token_id: 7 must be one of the 7 ids of the vocabulary"),
        ({"begin_token_id": 2, "mask_token_id": 2}, r"model.begin_token_id: 2 must be .* not that of MASK"),
        ({"end_token_ids": [2, 7]}, r"model.end_token_ids: 2, 6, 7 must be ids of the vocabulary \(0 to 6\)"),
        ({"end_token_ids": [-1]}, r"model.end_token_ids: -1, 6 must be ids"),
        ({"end_token_ids": [2], "mask_token_id": 2}, r"model.mask_token_id: 2 must be .* not that of end of text"),
    ],
)
def test_ids_that_mean_nothing_are_refused(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy_model(**keys)


def test_a_begin_token_that_nothing_reads_is_told() -> None:
    assert ModelConfig().begin == 0
    assert any(
        "model.begin_token_id = 3 is ignored" in line for line in check(load_config(None, ["model.begin_token_id=3"]))
    )
