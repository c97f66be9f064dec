"""A source of known entropy: the trained bound approaches it and never beats it by more than noise."""

import math

import numpy as np
import pytest
import torch
from toy import nll_of, toy_model

from hybrid.data.corpora.markov import Markov
from hybrid.objectives.cross_entropy import masked_loss
from hybrid.objectives.estimators import Count
from hybrid.objectives.noise import NoiseKeys

SOURCE = Markov(letters=5, length=24, seed=2)  # rows of the transition matrix are far from uniform
VOCAB, LENGTH = SOURCE.letters, SOURCE.length


def sample(rows: int, seed: int) -> torch.Tensor:
    """Tokens (rows, LENGTH), without an end of text."""
    return torch.from_numpy(SOURCE.chain.sample(np.random.default_rng(seed), rows, LENGTH))


@pytest.mark.slow
@pytest.mark.parametrize("block_size, margin", [(1, 0.02), (4, 0.06)])
def test_the_bound_approaches_the_entropy_from_above(block_size, margin):
    """500 steps on a 5-state chain (0.9 nats per token). Against the source's own likelihood of the same rows, so that
    only the model's error and the noise of the masks remain. Block size 4 keeps a gap: any-order prediction inside a
    block is harder than left to right, by a bound that is not tight."""
    model = toy_model(vocab=VOCAB, dtype=torch.float32, dim=48, n_layers=2).train()
    with torch.no_grad():
        model.head_weight.mul_(1 / 40)
        model.embedding.weight.mul_(1 / 40)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    everything = torch.ones(64, LENGTH, dtype=torch.bool)
    for step in range(500):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 20) * (1 - step / 500)
        tokens = sample(64, seed=1000 + step)
        masking = Count().draw(NoiseKeys(0, step, torch.arange(64), 0, 64), everything, block_size, 1, True)
        loss = masked_loss(model, tokens, masking, block_size).total / tokens.numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held_out = sample(512, seed=7)
    with torch.no_grad():
        result = nll_of(model, held_out, block_size, draws=16)
    excess = (result.nll + torch.from_numpy(SOURCE.chain.log_prob(held_out.numpy()))) / LENGTH
    error = math.sqrt(float(excess.var()) / len(excess))
    mean = float(excess.mean())
    assert mean > -4 * error, f"below the truth by {-mean:.4f} nats per token, error {error:.4f} (false alarm 3e-5)"
    assert mean < margin, f"{mean:.4f} nats per token above the source ({SOURCE.entropy() / LENGTH:.3f})"
