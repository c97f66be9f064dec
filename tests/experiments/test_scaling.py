"""The costs that docs/scaling.md is computed from, against torch's own count and the mask itself."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hybrid.bench.baselines import causal_loss
from hybrid.bench.cost import count_flops
from hybrid.config import load_config
from hybrid.experiments.measuring.shape import Shape, kept_per_row, parameters_of, shape_of
from hybrid.experiments.scaling import Device, memory, serving, training
from hybrid.model import ModelConfig, Transformer
from hybrid.model.attention import Eager
from hybrid.model.masks import TwoStream
from hybrid.objectives.cross_entropy import masked_loss
from hybrid.objectives.estimators import Masking
from hybrid.training.optim import OptimConfig, Optimizer

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


def test_state_is_what_a_step_of_training_keeps() -> None:
    """Weights, gradients and the two moments of AdamW; an average of the weights is one more."""
    model = Transformer(MODEL, 50, 49)
    optimizer = Optimizer(model, OptimConfig())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step(torch.zeros(()))
    states = (t for part in optimizer.parts.values() for state in part.state.values() for t in state.values())
    kept = [t for t in (*model.parameters(), *(p.grad for p in model.parameters()), *states) if t.numel() > 1]
    n = model.n_parameters()
    assert sum(t.nbytes for t in kept) == 16 * n
    device = Device(1e12, 1e12, 1e15, 1.0)
    for ema, bytes_each in (("0", 16), ("0.99", 20)):
        config = load_config(None, [f"optim.ema_decay={ema}", "model.dim=32", "model.n_heads=4", "model.n_kv_heads=2"])
        shape = shape_of(config)
        rows = memory({"x": (config, shape, 10**10)}, device, [8]).cells
        whole = 4 * shape.layer_parameters + 16 * 257 * 32  # two layers in bf16; embedding, head and their gradients
        assert [row[1:3] for row in rows] == [["ddp", "any"], ["fsdp", 8]]
        assert rows[0][3] == f"{bytes_each * 10:,.1f}" and rows[1][3] == f"{bytes_each * 10 / 8 + whole / 1e9:,.1f}"


def test_what_fits_beside_the_state() -> None:
    """Nine tenths of the memory, less state and what is put together, in whole rows."""
    config = load_config(None, ["model.dim=32", "model.n_heads=4", "model.n_kv_heads=2", "data.seq_len=64"])
    shape, n = shape_of(config), 1000
    whole = 4 * shape.layer_parameters + 16 * 257 * 32
    each = shape.activation_bytes(False)
    assert each == pytest.approx((64 - 8 + 64) / 64 * config.model.n_layers * kept_per_row(config.model, False))
    for rows, extra in ((2, 1.0), (1, -1.0)):  # two rows of 64 tokens, and a byte less than that
        room = 2 * 64 * each + extra
        for mode, state in (("ddp", 16 * n), ("fsdp", 16 * n / 4 + whole)):
            device = Device(1e12, 1e12, (room + state) / 0.9, 1.0)
            found = {row[1]: row[4] for row in memory({"x": (config, shape, n)}, device, [4]).cells}
            assert found[mode] == 64 * rows


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


def test_hours_speeds_and_texts_by_hand() -> None:
    """A device of 1 TFLOP/s of which half is used, 1 TB/s and 10 GB; a model of 100 million parameters."""
    config = load_config(None, ["model.dim=32", "model.n_layers=3", "model.n_heads=4", "model.n_kv_heads=2"])
    shape, n, device = shape_of(config), 10**8, Device(1e12, 1e12, 1e10, 0.5)
    models = {"x": (config, shape, n)}
    plain, blocks = training(models, device).cells[:2]
    base, ours = shape.autoregressive_flops(), dataclasses.replace(shape, draws=1).training_flops()
    assert (plain[2], blocks[2]) == pytest.approx((base / 1e9, ours / 1e9))
    assert plain[3] == "1.00" and blocks[3] == f"{base / ours:.2f}" and base < ours
    assert blocks[4:] == [f"{0.5e12 / ours:,.0f}", "2B", f"{20 * n * ours / 0.5e12 / 3600:,.0f}"]
    (row,) = serving(models, dataclasses.replace(device, peak=1e15)).cells
    forwards = 1e12 / (2 * (n - 258 * 32))
    texts = (0.9 * 1e10 - 2 * n) / (shape.cache_bytes() * shape.seq_len)
    assert row[1:4] == ["0.2", f"{forwards:,.0f}", f"{4 * forwards:,.0f}"]
    assert row[5:] == [f"{texts:,.0f}", 1000, 125], "1,000 products in the time of a byte, in blocks of 8"


def test_the_table(command, tmp_path) -> None:
    output = tmp_path / "scaling.md"
    done = command("experiments.scaling", "--config", "configs/gpu/openwebtext.yaml", "--output", output)
    assert done.code == 0, done.err
    assert "162M" in done.out and "fsdp" in done.out and done.out.strip() in output.read_text()
    for words in (("--utilisation", "2"), ("--peak", "0"), ("--ranks", "0")):
        refused = command("experiments.scaling", "--config", "configs/gpu/openwebtext.yaml", *words)
        assert refused.code == 2 and words[0] in refused.err
