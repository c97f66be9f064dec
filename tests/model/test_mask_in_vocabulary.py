"""A MASK that is an id of the vocabulary: predicted, or banned."""

from __future__ import annotations

import itertools

import pytest
import torch
from decoding_toy import Spy, engine
from toy import nll_of, toy_model

from hybrid.config import load_config
from hybrid.data.tokenizers import ByteTokenizer
from hybrid.decoding import DECODERS
from hybrid.lm import LanguageModel
from hybrid.model.build import build_model
from hybrid.model.two_stream import two_stream_hidden
from hybrid.options import build


def test_a_mask_inside_the_vocabulary_is_predicted_only_if_it_may_be():
    tokens = torch.tensor([[0, 1, 3, 4, 5, 0]])
    masked = torch.ones(1, 1, 6, dtype=torch.bool)
    for prediction, tied in itertools.product(("in_place", "next_token"), (False, True)):
        laws = {}
        for ban in (True, False):
            model = toy_model(prediction=prediction, tied_embeddings=tied, mask_token_id=2, ban_mask=ban)
            assert model.embedding.num_embeddings == 7 and model.head_matrix().shape == (7, 16)
            p = model.head(two_stream_hidden(model, tokens, masked, 3)).softmax(-1)
            torch.testing.assert_close(p.sum(-1), torch.ones_like(p[:, 0]))
            laws[ban] = p
        assert (laws[True][:, 2] == 0).all() and (laws[False][:, 2] > 0).all()
        others = [0, 1, 3, 4, 5, 6]
        renormalised = laws[False][:, others] / (1 - laws[False][:, 2:3])
        torch.testing.assert_close(laws[True][:, others], renormalised, rtol=0, atol=1e-12)


def test_a_banned_mask_takes_no_likelihood():
    """The likelihood over all texts without MASK is 1 if MASK is banned, and less if it is not."""
    texts = torch.tensor(list(itertools.product((0, 1, 3), repeat=3)))
    for ban in (True, False):
        model = toy_model(vocab=4, mask_token_id=2, ban_mask=ban, seed=2)
        total = float((-nll_of(model, texts, 3, "enumerate").nll).exp().sum())
        assert total == pytest.approx(1, abs=1e-9) if ban else total < 0.99


def test_a_banned_mask_is_no_token_of_a_text():
    """As the MASK behind a vocabulary is none; one that may be predicted counts as any token does."""
    overrides = ["model.dim=8", "model.n_layers=1", "model.n_heads=2", "data.seq_len=8", "model.mask_token_id=1"]
    tokenizer, tokens = ByteTokenizer(), torch.tensor([[65, 1, 66]])
    for ban in (True, False):
        config = load_config(None, [*overrides, f"model.ban_mask={ban}", "objective.block_size=4"])
        lm = LanguageModel(
            config,
            tokenizer,
            build_model(config.model, tokenizer.vocab_size, tokenizer.end_of_text, torch.device("cpu"), seed=0).eval(),
        )
        if ban:
            for ask in (lm.nll, lm.logits):
                with pytest.raises(ValueError, match=r"tokens: 1 is MASK, which texts do not hold"):
                    ask(tokens)
        else:
            assert lm.nll(tokens).nll.isfinite().all()


def test_a_mask_that_counts_takes_part_in_confidences():
    """What a decoder sees of a model that may predict MASK is the law of all ids, MASK among them."""
    seen = []
    model = toy_model(vocab=4, mask_token_id=2, ban_mask=False, seed=2)
    spy = Spy(build(DECODERS, "confidence", "decoder"), lambda view: seen.append(view.log_probs.exp()))
    engine(model, 3, spy, stop_at_end=False).generate([[1]], 5)
    masses = torch.cat([p[..., 2].flatten() for p in seen])
    assert masses.max() > 0.01 and torch.cat([p.sum(-1).flatten() for p in seen]).allclose(torch.tensor(1.0).double())


def test_guidance_leaves_a_banned_mask_without_probability():
    """It is impossible with and without the prompt; of the difference nothing may be left."""
    model = toy_model(mask_token_id=2)
    spy = Spy(build(DECODERS, "confidence", "decoder"), lambda view: view.log_probs.exp())
    engine(model, 3, spy, guidance=1.5, stop_at_end=False).generate([[1, 5, 0, 1]], 6)
    laws = torch.cat([look.flatten(0, 1) for *_, look in spy.steps])
    assert (laws[:, 2] <= 0).sum() > 0 and torch.allclose(laws.sum(-1), torch.ones_like(laws[:, 0]))
