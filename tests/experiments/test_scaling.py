"""The tables of docs/scaling.md: state of a rank, what fits beside it, hours and speeds by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hybrid.config import load_config
from hybrid.experiments.measuring.shape import kept_per_row, shape_of
from hybrid.experiments.scaling import Device, memory, serving, training
from hybrid.model import ModelConfig, Transformer
from hybrid.training.optim import OptimConfig, Optimizer

MODEL = ModelConfig(dim=32, n_layers=3, n_heads=4, n_kv_heads=2, hidden_dim=64)


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
