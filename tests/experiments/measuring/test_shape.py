"""Costs of a model's sizes against torch, autograd and the mask."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hybrid.bench.baselines import causal_loss
from hybrid.bench.cost import count_flops
from hybrid.config import load_config
from hybrid.experiments.measuring.shape import Shape, kept_per_row, parameters_of, shape_of
from hybrid.model import ModelConfig, Transformer
from hybrid.model.attention import Eager
from hybrid.model.masks import TwoStream
from hybrid.objectives.cross_entropy import masked_loss
from hybrid.objectives.estimators import Masking

MODEL = ModelConfig(dim=32, n_layers=3, n_heads=4, n_kv_heads=2, hidden_dim=64)


class NoAttention(Eager):
    """Passes something on that depends on queries, keys and values, without a product."""

    def __call__(self, q, k, v, pattern):
        return q + k.mean(2, keepdim=True) + v.mean(2, keepdim=True)


@pytest.mark.parametrize("block_size, draws", [(4, 1), (4, 2), (16, 1)])
def test_products_of_a_training_step(block_size: int, draws: int) -> None:
    shape = Shape(MODEL, vocab=50, seq_len=16, block_size=block_size, draws=draws)
    model = Transformer(MODEL, 50, 49)
    model.attend = NoAttention()
    tokens = torch.randint(0, 49, (8, 16))
    # The mean number of masked tokens, (B + 1) / 2 of a block, in exactly the rows that it needs.
    masked = torch.zeros(8, draws, 16, dtype=torch.bool)
    n = 8 * draws * 16 * (block_size + 1) // (2 * block_size)
    masked.view(-1)[:n] = True

    def step() -> None:
        masked_loss(model, tokens, Masking(masked, masked.double()), block_size).total.backward()

    m = MODEL
    scores = 4 * m.n_heads * m.head_width * (shape.pairs(True) * (m.n_layers - 1) + shape.pairs(False) * m.n_layers)
    expected = 8 * (16 * shape.training_flops() - 3 * scores)
    assert count_flops(step) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("block_size, draws", [(1, 1), (4, 1), (4, 3), (16, 1)])
def test_pairs_are_those_of_the_mask(block_size: int, draws: int) -> None:
    pattern = TwoStream.of(16, block_size, draws=draws)
    shape = Shape(MODEL, 50, 16, block_size, draws)
    assert shape.pairs(True) + shape.pairs(False) == int(pattern.dense().sum())
    assert shape.pairs(False) == int(pattern.reading().dense().sum())


def test_layers_and_models_have_the_parameters_that_are_said() -> None:
    config = load_config(None, ["model.dim=32", "model.n_layers=3", "model.n_heads=4", "model.n_kv_heads=2"])
    shape = shape_of(config)
    layer = Transformer(shape.model, 257, 256).layers[0]
    assert shape.layer_parameters == sum(p.numel() for p in layer.parameters() if p.ndim == 2)
    assert parameters_of(config) > 3 * shape.layer_parameters + 2 * 257 * 32


def test_a_second_draw_costs_half_and_a_block_of_one_row_one_stream() -> None:
    one, two = (Shape(MODEL, 50, 1024, 4, d).training_flops() for d in (1, 2))
    assert 1.4 < two / one < 1.6
    row = Shape(MODEL, 50, 16, 16)
    assert 0.8 < row.training_flops() / row.autoregressive_flops() < 1.1


def test_activations_grow_with_the_width_and_recomputing_keeps_the_stream_alone() -> None:
    kept = kept_per_row(MODEL, recompute=False)
    assert kept_per_row(MODEL, recompute=True) == 4 * 32 < kept / 5
    # At least the inputs of the seven matrices in bf16: y, out, its norm, gate * up; and gate and up themselves.
    assert 2 * (3 * 32 + 3 * 64) < kept < 40 * (3 * 32 + 3 * 64)


def test_a_cache_holds_the_bytes_of_a_token() -> None:
    cache = Transformer(MODEL, 50, 49).bfloat16().new_cache(1, 9)
    assert Shape(MODEL, 50, 16, 4).cache_bytes() == (cache.keys.nbytes + cache.values.nbytes) / cache.n_slots


def test_products_of_a_plain_causal_step() -> None:
    """Attention is counted apart, of the pairs up to each row itself."""
    shape, tokens = Shape(MODEL, 50, 16, 4), torch.randint(0, 49, (8, 16))
    model = Transformer(dataclasses.replace(MODEL, context="causal", prediction="next_token"), 50, 49)
    model.attend = NoAttention()
    pairs = 3 * 4 * MODEL.n_layers * MODEL.n_heads * MODEL.head_width * sum(range(1, 17))
    expected = 8 * (16 * shape.autoregressive_flops() - pairs)
    assert count_flops(lambda: causal_loss(model, tokens).backward()) == pytest.approx(expected, rel=1e-9)
