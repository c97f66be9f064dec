"""python -m hybrid.bench: its tables say what was measured."""

from __future__ import annotations

import json

import pytest
from conftest import Command

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


@pytest.mark.parametrize(
    "words", [["train", "--repeats", "0"], ["generate", "--batch", "0"], ["train", "--vocab", "1"]]
)
def test_options_out_of_range(command: Command, words):
    done = command("bench.__main__", *words)
    assert done.code == 2 and "at least" in done.err and "Traceback" not in done.err
