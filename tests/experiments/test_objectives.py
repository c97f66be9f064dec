"""The comparison of objectives: what it trains, what it repeats, and what its table says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import Configure
from text_figures import entropy, options, per_token
from toy import toy_model

from hybrid.config import load_config
from hybrid.data.batches import PackedTokens
from hybrid.experiments import objectives
from hybrid.experiments.measuring.trained import Trained, left_to_right
from hybrid.experiments.objectives import COMMON, CONTENDERS, Outcome, fitting_steps, table
from hybrid.lm import LanguageModel


def test_an_objective_is_judged_at_its_block_size_and_at_one(
    lm: LanguageModel, split: PackedTokens, configure: Configure, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def find(config: Any, steps: int, rows: int) -> Trained:
        asked.append((steps, rows))
        return Trained(lm, split, steps, 2.5)

    monkeypatch.setattr("hybrid.experiments.measuring.trained.trained", find)
    arguments = options(rows=5, samples=3, new_tokens=12)
    got = objectives.outcome(configure(tmp_path, "run.seed=7"), "elbo", 40, 0.1, None, arguments)
    texts = lm.generate([[]] * 3, 12, stop_at_end=False).tokens
    assert asked == [(40, 5)] and (got.name, got.seed, got.steps, got.nelbo) == ("elbo", 7, 40, 2.5)
    assert got.at_one == pytest.approx(per_token(lm, split.rows(range(5)).tokens, 1, "exact"))
    assert got.entropy == pytest.approx(entropy(texts)) and got.gen_ppl is None


def test_what_the_autoregressive_loss_trains_is_what_is_judged_from_left_to_right(
    lm: LanguageModel, split: PackedTokens, configure: Configure, tmp_path: Any
) -> None:
    """The law of the clean rows; without that loss, of MASKs at block size 1."""
    model = toy_model("causal", vocab=lm.model.vocab_size, dtype=torch.float32)
    config = configure(tmp_path, "model.context=causal", "objective.ar_weight=0.5")
    both = LanguageModel(config, lm.tokenizer, model)
    tokens = split.rows(range(5)).tokens
    assert left_to_right(both, split, config, 5) == pytest.approx(per_token(both, tokens, 1, "causal"))
    config.objective.ar_weight = 0.0
    assert left_to_right(both, split, config, 5) == pytest.approx(per_token(both, tokens, 1, "exact"))


def test_columns_of_objectives() -> None:
    def run(name: str, seed: int, nelbo: float, at_one: float, ppl: float | None) -> objectives.Outcome:
        return objectives.Outcome(name, seed, 100 + seed, 0.2, nelbo, at_one, nelbo / 2, ppl)

    outcomes = [run("elbo", 0, 3.0, 4.0, 10.0), run("cart", 0, 2.0, 5.0, None), run("bert", 0, 2.5, 6.0, 30.0)]
    table = objectives.table(outcomes)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.cells]
    assert [row["objective"] for row in rows] == ["cart", "bert", "elbo"]
    assert [row["at block size 1"] for row in rows] == ["5.0000", "6.0000", "4.0000"]
    assert [row["less elbo"] for row in rows] == ["-1.0000", "-0.5000", None]
    assert [row["gen-ppl"] for row in rows] == [None, "30.0", "10.0"]
    assert [row["entropy"] for row in rows] == ["1.00", "1.25", "1.50"]


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_is_a_configuration(name):
    assert load_config("configs/bytes.yaml", [*COMMON, *CONTENDERS[name]]).objective.draws == 2


def test_means_errors_and_paired_differences():
    def run(name, seed, nelbo):
        return Outcome(name, seed, 100, 0.1 if name == "elbo" else 0.15, nelbo, 2.5, 3.0, None)

    outcomes = [run("elbo", 0, 2.0), run("elbo", 1, 2.2), run("bert", 0, 2.5), run("bert", 1, 2.9)]
    rows = {row[0]: row for row in table(outcomes).cells}
    assert list(rows) == ["elbo", "bert"], "the best first"
    assert rows["elbo"][3] == f"2.1000 ± {0.1:.4f}"
    assert rows["bert"][4] == f"+0.6000 ± {math.sqrt(0.02 / 2):.4f}", "0.5 and 0.7: paired by seed"
    assert rows["bert"][2] == "1.50"


def test_a_dearer_step_gets_fewer_of_them():
    config = load_config(None, ["trainer.steps=300"])
    assert fitting_steps(config, 1.5, 1.0) == 200 and fitting_steps(config, 1.03, 1.0) == 300


@pytest.mark.slow
def test_runs_are_kept_and_not_repeated(command, corpus, tmp_path, capsys):
    words = (
        "--config", "configs/bytes.yaml", "--only", "elbo", "maskgit", "--seeds", 0, "--folder", tmp_path / "runs",
        "--rows", 2, "--samples", 2, "--new-tokens", 8, "--output", tmp_path / "table.md",
        f"data.corpus={corpus}", "data.tokenizer=char", "data.seq_len=32", "data.validation_fraction=0.2",
        "model.dim=16", "model.n_layers=1", "model.n_heads=2", "trainer.steps=2", "trainer.batch_tokens=64",
        "optim.warmup_steps=1",
    )  # fmt: skip
    first = command("experiments.objectives", *words)
    assert first.code == 0, first.err
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir() if path.is_dir())
    assert folders == ["elbo-s0", "maskgit-s0"]
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert first.out.strip() in text and "seed 0" in text and "commit" in text
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.safetensors")}
    second = command("experiments.objectives", *words)
    assert second.code == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.safetensors")} == before
    values = [[line.split("|")[4] for line in done.out.splitlines() if line[:1] == "|"] for done in (first, second)]
    assert values[0] == values[1], "evaluation is a function of the weights"
    assert "--only: 'elb' is not one of" in command("experiments.objectives", "--config", "x", "--only", "elb").error
