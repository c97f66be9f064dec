"""python -m hybrid.bench: its tables say what was measured."""

from __future__ import annotations

import json

import pytest
from conftest import Command

from hybrid.bench import generation, parts, training
from hybrid.model.layers import Layer

SMALL = ["model.dim=16", "model.n_layers=1", "model.n_heads=2", "data.seq_len=16", "trainer.batch_tokens=32"]
SMALL += ["objective.block_size=4", "trainer.precision=fp32"]


@pytest.mark.slow
def test_tables(command: Command, tmp_path):
    file, table = tmp_path / "bench.json", tmp_path / "speed.md"
    done = command(
        "bench.__main__", "all", *SMALL, "--repeats", 1, "--new-tokens", 16, "--uncached", "--json", file,
        "--output", table,
    )  # fmt: skip
    assert done.code == 0, done.err
    results = json.loads(file.read_text())["results"]
    names = [row["variant"] for row in results["train"]]
    assert names[0] == "plain autoregressive" and len(names) == 5
    forwards = {row["variant"]: row["forwards"] for row in results["generate"]}
    assert forwards["1 a step, fp32"] == forwards["autoregressive, cache, fp32"] == 16
    assert forwards["4 a step, fp32"] == 4, "no forward but the decoder's steps"
    assert forwards["4 a step, separate commit, fp32"] == 7, "one more for each block but the first"
    assert all(name in table.read_text() for name in names)


@pytest.mark.slow
def test_parts_of_a_step(command: Command, tmp_path):
    file = tmp_path / "bench.json"
    results = {}
    for what in ("attention", "head", "data"):
        done = command("bench.__main__", what, *SMALL, "--repeats", 1, "--json", file)
        assert done.code == 0, done.err
        record = json.loads(file.read_text())
        results[what] = record["results"][what]
        assert record["config"]["objective"]["block_size"] == 4 and record["options"]["what"] == what
    rows = {row["attention"]: row for row in results["attention"]}
    assert list(rows) == ["plain causal, one stream", "straightforward dense mask", "sdpa"], "what trains on a CPU"
    # 4 blocks of 4: a clean row sees (1 + 2 + 3) of 3 blocks, a noisy one (1 + 2 + 3 + 4).
    assert rows["sdpa"]["queries x keys"] == "28 x 28"
    assert rows["sdpa"]["of these allowed"] == pytest.approx(16 * (1 + 2 + 3 + 1 + 2 + 3 + 4) / 28**2, abs=1e-3)
    assert rows["plain causal, one stream"]["of these allowed"] == pytest.approx(17 / 32, abs=1e-3)
    assert [row["head"] for row in results["head"]][:2] == ["ours, in chunks", "plain"]
    assert all(row["rows"] == 2 * 16 * 5 // 8 and row["ms"] >= 0 for row in results["head"])
    assert len(results["data"]) == 2 and all(row["tokens/s"] > 0 for row in results["data"])


@pytest.mark.slow
def test_growth(command: Command, tmp_path):
    file = tmp_path / "bench.json"
    done = command("bench.__main__", "growth", *SMALL, "trainer.batch_tokens=512", "--repeats", 1, "--json", file)
    assert done.code == 0, done.err
    rows = json.loads(file.read_text())["results"]["growth"]
    grown = {what: [row["to"] for row in rows if row["what grows"] == what] for what in ("row length", "block size")}
    assert grown == {"row length": [256, 512], "block size": [1, 2, 4, 8, 16]}
    assert [row["to"] for row in rows if row["what grows"] == "vocabulary"] == [257, 1024, 4096, 16384, 50257]


@pytest.mark.parametrize("broken", ["head", "data"])
def test_what_was_measured_outlives_what_fails_behind_it(
    broken: str, command: Command, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part fails at its start, or behind its first row."""

    def rows(number: int, fails: bool = False):
        for i in range(number):
            yield parts.DataRow(f"row {i}", 1.0, "1-1", 1.0)
        if fails:
            raise RuntimeError("CUDA error")

    for module in (training, generation):
        monkeypatch.setattr(module, "measure", lambda *_: rows(2))
    for name in ("attention", "head", "data", "growth"):
        fails, number = name == broken, 1 if name == "data" else 0
        monkeypatch.setattr(parts, name, lambda *_, n=number, fails=fails: rows(n if fails else 2, fails))
    file, table = tmp_path / "bench.json", tmp_path / "speed.md"
    with pytest.raises(RuntimeError, match="CUDA error"):
        command("bench.__main__", "all", *SMALL, "--json", file, "--output", table)
    results = {name: len(rows) for name, rows in json.loads(file.read_text())["results"].items()}
    more = {"head": 2, "data": 1} if broken == "data" else {}
    assert results == {"train": 2, "generate": 2, "attention": 2, **more}
    assert table.read_text().count("| row 0 |") == len(results)


@pytest.mark.parametrize("choice, compiled", [("auto", False), ("on", True), ("off", False)])
def test_steps_are_compiled_as_those_of_a_run(
    choice: str, compiled: bool, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that is timed runs compiled layers where trainer.compile says so, and the caption tells."""
    calls = []
    monkeypatch.setattr(Layer, "compile_parts", lambda layer: calls.append(layer))
    monkeypatch.setattr(training, "matmul_rate", lambda device, dtype: 1.0)
    done = command("bench.__main__", "train", *SMALL, f"trainer.compile={choice}", "--repeats", 1)
    assert done.code == 0, done.err
    assert len(calls) == (5 if compiled else 0), "one layer in each of the variants that are timed"
    assert f"layers {'compiled' if compiled else 'not compiled'}." in done.out


@pytest.mark.parametrize(
    "words", [["train", "--repeats", "0"], ["generate", "--batch", "0"], ["train", "--vocab", "1"]]
)
def test_options_out_of_range(command: Command, words):
    done = command("bench.__main__", *words)
    assert done.code == 2 and "at least" in done.err and "Traceback" not in done.err
