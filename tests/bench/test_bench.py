"""The baselines of the benchmark compute what they are compared with, and its tables say what was measured."""

import json

import pytest
import torch
from conftest import Command
from toy import random_tokens, toy_model

from hybrid.bench import cost, generation, parts, training
from hybrid.bench.baselines import (
    Causal,
    Dense,
    SeparateCommit,
    Straightforward,
    causal_loss,
    decode_one_by_one,
    straightforward_loss,
)
from hybrid.bench.cost import count_flops
from hybrid.config import load_config
from hybrid.decoding import FirstHitting, GenerationConfig
from hybrid.decoding.denoiser import Network
from hybrid.decoding.engine import Engine
from hybrid.objectives.cross_entropy import masked_loss
from hybrid.objectives.estimators import Count
from hybrid.objectives.noise import NoiseKeys
from hybrid.results.table import Table
from hybrid.results.timing import Timing


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


def test_flops_of_a_product_and_of_attention():
    q, k = torch.randn(2, 3, 8, 16), torch.randn(2, 3, 20, 16)
    assert count_flops(lambda: torch.randn(5, 7) @ torch.randn(7, 11)) == 2 * 5 * 7 * 11
    attention = torch.nn.functional.scaled_dot_product_attention
    assert count_flops(lambda: attention(q, k, k)) == 2 * 2 * 2 * 3 * 8 * 20 * 16


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
    rows = training.measure(setting, 1, False)
    shown = Table(rows).records()
    assert [row.variant for row in rows[:1] + rows[-1:]] == [training.AUTOREGRESSIVE, training.STRAIGHTFORWARD]
    assert [row["of autoregressive"] for row in shown] == [1.0, 0.5, 0.333, 0.25, 0.2]
    assert [row["of straightforward"] for row in shown] == [5.0, 2.5, 1.667, 1.25, 1.0]
    assert [row["tokens/s"] for row in shown] == [32, 16, 11, 8, 6]
    assert [row["ms"] for row in shown] == [1000.0, 2000.0, 3000.0, 4000.0, 5000.0]
    flops = [count_flops(training.make_step(setting, row.variant)) for row in rows]
    assert [row["of matmul rate"] for row in shown] == [round(f / t / 1e6, 3) for t, f in enumerate(flops, start=1)]


def test_rates_of_a_machine_are_those_of_the_best_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(variants, repeats, device):
        return {name: Timing([4.0, 2.0, 3.0]) for name in variants}

    monkeypatch.setattr(cost, "interleave", timed)
    device = torch.device("cpu")
    assert cost.matmul_rate(device, torch.float32, size=8) == 2 * 8**3 / 2
    assert cost.bandwidth(device, n_bytes=4096) == 2048


def test_flops_of_attention_backwards_are_five_products() -> None:
    q, k = torch.randn(2, 3, 8, 16, requires_grad=True), torch.randn(2, 3, 20, 16, requires_grad=True)
    attention = torch.nn.functional.scaled_dot_product_attention
    product = 2 * 2 * 3 * 8 * 20 * 16
    assert count_flops(lambda: attention(q, k, k).sum().backward()) == (2 + 5) * product


def test_ratios_of_generation_are_speeds(setting: training.Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoTime(generation.Clock):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(generation, "Clock", NoTime)  # the network takes none of it
    rows = Table(generation.measure(setting, 16, [3], 1, False)).records()
    expected = ["autoregressive, cache", "1 a step", "4 a step"]
    assert [row["variant"] for row in rows] == [f"{name}, {p}" for p in ("fp32", "bf16") for name in expected]
    assert [row["of the best autoregressive"] for row in rows] == [1.0, 0.5, 0.33, 0.25, 0.2, 0.17]
    assert [row["tokens/s"] for row in rows] == [48, 24, 16, 12, 10, 8]
    assert [row["forwards"] for row in rows] == [16, 16, 4] * 2
    assert [row["engine's share"] for row in rows] == [None, 1.0, 1.0] * 2
    assert [row["ms per forward"] for row in rows] == [62.5, 125.0, 750.0, 250.0, 312.5, 1500.0]
    model = setting.build("in_place", training=False)
    read = model.n_parameters() - model.embedding.weight.numel()
    cache = 3 * 8 * 2 * model.config.kv_heads * model.config.head_width  # three texts, on average half written
    n_bytes = [4, 4, 4, 2, 2, 2]
    shares = [n * (read + cache) * row["forwards"] / t for t, (n, row) in enumerate(zip(n_bytes, rows, strict=True), 1)]
    assert [row["of bandwidth"] for row in rows] == [round(share / 1e6, 3) for share in shares]


def test_ratios_of_parts_are_speeds(setting: training.Setting) -> None:
    rows = Table(parts.attention(setting, 1)).records()
    assert [row["times as fast as dense"] for row in rows] == [2.0, 1.0, 0.67], "the second one is dense"
    rows = Table(parts.head(setting, 1)).records()
    assert [(row["head"], row["of plain"]) for row in rows[:2]] == [("ours, in chunks", 2.0), ("plain", 1.0)]
    rows = Table(parts.growth(setting, 1)).records()
    assert {(row["ms"], row["autoregressive, ms"], row["of autoregressive"]) for row in rows} == {(2000.0, 1000.0, 0.5)}
    assert [row["tokens/s"] for row in Table(parts.data(setting, 1)).records()] == [32, 16]


SMALL = ["model.dim=16", "model.n_layers=1", "model.n_heads=2", "data.seq_len=16", "trainer.batch_tokens=32"]
SMALL += ["objective.block_size=4", "trainer.precision=fp32"]


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
