"""Ratios of the benchmark are speeds: above 1 is faster."""

from __future__ import annotations

import pytest

from hybrid.bench import generation, parts, training
from hybrid.config import load_config
from hybrid.results.table import Table
from hybrid.results.timing import Timing


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> training.Setting:
    """Variants are not run, but take 1, 2, 3, ... seconds in the order of their names in the table."""

    def timed(variants, repeats, device):
        return {name: Timing([float(i), 99.0, 0.5]) for i, name in enumerate(variants, start=1)}

    for module in (training, generation, parts):
        monkeypatch.setattr(module, "interleave", timed)
    monkeypatch.setattr(training, "matmul_rate", lambda device, dtype: 1e6)
    monkeypatch.setattr(generation, "bandwidth", lambda device: 1e6)
    config = load_config(None, SMALL)
    return training.Setting(config.model, 11, 16, 2, 4, "fp32", "cpu")


def test_ratios_of_training_are_speeds(setting: training.Setting) -> None:
    """Above 1 is faster; of a variant that takes t seconds, where the first takes 1 and the last one 5."""
    rows = list(training.measure(setting, 1, False))
    shown = Table(rows).records()
    assert [row.variant for row in rows[:1] + rows[-1:]] == [training.AUTOREGRESSIVE, training.STRAIGHTFORWARD]
    assert [row["of autoregressive"] for row in shown] == [1.0, 0.5, 0.333, 0.25, 0.2]
    assert [row["of straightforward"] for row in shown] == [5.0, 2.5, 1.667, 1.25, 1.0]
    assert [row["tokens/s"] for row in shown] == [32, 16, 11, 8, 6]
    assert [row["ms"] for row in shown] == [1000.0, 2000.0, 3000.0, 4000.0, 5000.0]
    flops = [training.count_step(setting, row.variant) for row in rows]
    assert [row["of matmul rate"] for row in shown] == [round(f / t / 1e6, 3) for t, f in enumerate(flops, start=1)]


def test_ratios_of_generation_are_speeds(setting: training.Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoTime(generation.Clock):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(generation, "Clock", NoTime)  # the network takes none of it
    rows = Table(list(generation.measure(setting, 16, [3], 1, False))).records()
    expected = ["autoregressive, cache", "1 a step", "4 a step"]
    assert [row["variant"] for row in rows] == [f"{name}, {p}" for p in ("fp32", "bf16") for name in expected]
    assert [row["of the best autoregressive"] for row in rows] == [1.0, 0.5, 0.33, 0.25, 0.2, 0.17]
    assert [row["tokens/s"] for row in rows] == [48, 24, 16, 12, 10, 8]
    assert [row["forwards"] for row in rows] == [16, 16, 4] * 2
    assert [row["engine's share"] for row in rows] == [None, 1.0, 1.0] * 2
    assert [row["ms per forward"] for row in rows] == [62.5, 125.0, 750.0, 250.0, 312.5, 1500.0]
    model = setting.build("in_place")
    read = model.n_parameters() - model.embedding.weight.numel()
    cache = 3 * 8 * 2 * model.config.kv_heads * model.config.head_width  # three texts, on average half written
    n_bytes = [4, 4, 4, 2, 2, 2]
    shares = [n * (read + cache) * row["forwards"] / t for t, (n, row) in enumerate(zip(n_bytes, rows, strict=True), 1)]
    assert [row["of bandwidth"] for row in rows] == [round(share / 1e6, 3) for share in shares]


@pytest.mark.slow
def test_ratios_of_parts_are_speeds(setting: training.Setting) -> None:
    rows = Table(list(parts.attention(setting, 1))).records()
    assert [row["times as fast as dense"] for row in rows] == [2.0, 1.0, 0.67], "the second one is dense"
    rows = Table(list(parts.head(setting, 1))).records()
    assert [(row["head"], row["of plain"]) for row in rows[:2]] == [("ours, in chunks", 2.0), ("plain", 1.0)]
    rows = Table(list(parts.growth(setting, 1))).records()
    assert {(row["ms"], row["autoregressive, ms"], row["of autoregressive"]) for row in rows} == {(2000.0, 1000.0, 0.5)}
    assert [row["tokens/s"] for row in Table(list(parts.data(setting, 1))).records()] == [32, 16]


SMALL = ["model.dim=16", "model.n_layers=1", "model.n_heads=2", "data.seq_len=16", "trainer.batch_tokens=32"]
SMALL += ["objective.block_size=4", "trainer.precision=fp32"]
