"""The baselines of the benchmark compute what they are compared with."""

from __future__ import annotations

import pytest
import torch
from toy import random_tokens, toy_model

from hybrid.bench.baselines import (
    Causal,
    Dense,
    SeparateCommit,
    Straightforward,
    causal_loss,
    decode_one_by_one,
    straightforward_loss,
)
from hybrid.decoding import FirstHitting, GenerationConfig
from hybrid.decoding.denoiser import Network
from hybrid.decoding.engine import Engine
from hybrid.objectives.cross_entropy import masked_loss
from hybrid.objectives.estimators import Count
from hybrid.objectives.noise import NoiseKeys


@pytest.mark.parametrize("block_size", [1, 4, 12])
def test_the_straightforward_pass_is_the_same_loss(block_size):
    model, tokens = toy_model(n_kv_heads=4), random_tokens(3, 12)
    everything = torch.ones_like(tokens, dtype=torch.bool)
    masking = Count().draw(NoiseKeys(0, 0, torch.arange(3), 0, 3), everything, block_size, 1, True)
    ours = masked_loss(model, tokens, masking, block_size).total
    model.attend = Dense()
    plain = straightforward_loss(model, tokens, masking, Straightforward.of(12, block_size))
    torch.testing.assert_close(plain.double(), ours, rtol=1e-6, atol=0)


def test_the_causal_pass_is_block_size_1():
    model, tokens = toy_model("causal", "next_token"), random_tokens(3, 12)
    everything = torch.ones_like(tokens, dtype=torch.bool)
    masking = Count().draw(NoiseKeys(0, 0, torch.arange(3), 0, 3), everything, 1, 1, True)
    ours = masked_loss(model, tokens, masking, 1).total
    model.attend = Causal()
    torch.testing.assert_close(causal_loss(model, tokens).double(), ours, rtol=1e-6, atol=0)


def test_decoding_one_by_one_samples_the_model():
    """Two tokens of three ids against the model's own probabilities; false-alarm probability below 1e-6."""
    model = toy_model("causal", "next_token", vocab=3)
    n = 4000
    text = decode_one_by_one(model, n, 2)
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    model.attend = Causal()
    with torch.no_grad():
        expected = torch.stack([(-causal_loss(model, pair[None]).double()).exp() for pair in pairs])
    counts = torch.bincount(text[:, 0] * 3 + text[:, 1], minlength=9)
    z = (counts - n * expected) / (n * expected * (1 - expected)).sqrt()
    assert expected.sum() == pytest.approx(1)
    assert z.abs().max() < 5.5


@pytest.mark.parametrize("context", ["block_causal", "causal"])
def test_a_separate_commit_writes_the_same_text_with_more_forwards(context):
    model, prompts = toy_model(context), [[1, 2, 3, 4, 5], []]
    plain, apart = (
        Engine(model, 16, GenerationConfig(4, FirstHitting(), stop_at_end=False), network=network).generate(prompts, 11)
        for network in (Network, SeparateCommit)
    )
    assert apart.tokens == plain.tokens
    assert apart.nfe == plain.nfe + 3, "one for each block iteration that begins behind something unread"
