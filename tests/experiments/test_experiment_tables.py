"""What the tables of experiments say: figures by hand or by `LanguageModel`, and rows in the order that is promised."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Configure
from text_figures import entropy, options, per_token

from hybrid.config import load_config
from hybrid.data.batches import PackedTokens
from hybrid.evaluation.answers import Answers
from hybrid.experiments import likelihoods, objectives, solving
from hybrid.experiments.measuring import trained
from hybrid.experiments.measuring.subject import Subject, load_runs
from hybrid.experiments.measuring.trained import Trained, elbo
from hybrid.lm import LanguageModel
from hybrid.results.table import plus_minus, standard_error


def test_errors_of_means_by_hand() -> None:
    assert standard_error([1.0, 2.0, 6.0]) == pytest.approx(math.sqrt(7 / 3)) and math.isnan(standard_error([1.0]))
    assert plus_minus([1.0, 2.0, 6.0], 2) == "3.00 ± 1.53" and plus_minus([0.5], 1, "+") == "+0.5"


def test_texts_are_judged_at_the_block_size_that_is_named(lm: LanguageModel, split: PackedTokens) -> None:
    texts = split.rows(range(3)).tokens[:, :10]
    subject = Subject(lm, 4, 10)
    assert subject.nats(texts) == pytest.approx(per_token(lm, texts, 4, "bound", draws=8))
    assert subject.exact_nats(texts) == pytest.approx(per_token(lm, texts, 1, "exact"))
    assert subject.nats(texts) != pytest.approx(subject.exact_nats(texts), rel=1e-3)


def test_runs_of_one_setting_differ_in_their_seed_alone(copy_of_trained: Path, tmp_path: Path) -> None:
    other = shutil.copytree(copy_of_trained, tmp_path / "other")
    text = (other / "config.yaml").read_text()
    for old, new, key in (
        ("  seed: 0", "  seed: 5", None), ("  steps: 8", "  steps: 9", "trainer.steps"),
        ("  seq_len: 32", "  seq_len: 16", "data.seq_len"), ("  lr: 0.01", "  lr: 0.02", "optim.lr"),
    ):  # fmt: skip
        assert text.count(f"{old}\n") == 1, old
        (other / "config.yaml").write_text(text.replace(f"{old}\n", f"{new}\n"))
        if key is None:
            assert [m.config.run.seed for m in load_runs([str(copy_of_trained), str(other)], "cpu")] == [0, 5]
            continue
        with pytest.raises(ValueError, match=f"differs from .* in {key}; leave it out"):
            load_runs([str(copy_of_trained), str(other)], "cpu")


# ---------------------------------------------------------------------------------------------------------------------
# Objectives


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


def test_the_elbo_of_a_run_is_that_of_its_first_rows(lm: LanguageModel, split: PackedTokens) -> None:
    tokens = split.rows(range(6)).tokens
    whole = per_token(lm, tokens, 4, "bound", draws="all")
    assert elbo(lm, split, 4, 6, draws=400) == pytest.approx(whole, rel=0.01)  # 8,000 draws of a row: an error of 0.2%
    assert elbo(lm, split, 1, 6, draws=1) == pytest.approx(per_token(lm, tokens, 1, "exact"))


def test_a_trained_run_is_judged_at_the_first_of_its_block_sizes(
    lm: LanguageModel, split: PackedTokens, configure: Configure, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained, "train", lambda config, folder, steps: steps + 1)
    monkeypatch.setattr("hybrid.lm.load", lambda folder, device: lm)
    got = trained.trained(configure(tmp_path), 7, rows=6)
    assert got.steps == 8 and got.nelbo == elbo(lm, split, 4, 6, draws=8)


def test_the_time_of_a_step_is_a_share_of_what_was_timed() -> None:
    """The first stepper takes a second a step, the other one two; each step has a number of its own."""
    now, steps = 0.0, {"a": [], "b": []}

    def stepper(name: str, seconds: float) -> Any:
        def run(step: int) -> None:
            nonlocal now
            steps[name].append(step)
            now += seconds

        return run

    steppers = {"a": stepper("a", 1.0), "b": stepper("b", 2.0)}
    found = trained.step_seconds(steppers, 3, torch.device("cpu"), clock=lambda: now)
    assert found == {"a": 1.0, "b": 2.0} and steps["a"] == steps["b"] == list(range(20))


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


# ---------------------------------------------------------------------------------------------------------------------
# Likelihoods


@pytest.mark.usefixtures("any_size_may_be_asked_for")
def test_every_likelihood_stands_under_its_block_size(lm: LanguageModel, split: PackedTokens) -> None:
    arguments = options(orders=["margin", "left_to_right"], rows=3, draws=2, block_size=[2, 4])
    values = likelihoods.measure([lm, lm], arguments)
    tokens = split.rows(range(3)).tokens
    assert values["exact", 1] == pytest.approx([per_token(lm, tokens, 1, "exact")] * 2)
    for size in (2, 4):
        assert values["enumerate", size][0] == pytest.approx(per_token(lm, tokens, size, "enumerate"))
        assert values["best_order", size][0] == pytest.approx(per_token(lm, tokens, size, "best_order"))
        each = {name: lm.nll(tokens, size, "policy", decoder=name) for name in arguments.orders}
        for name, result in each.items():
            assert values[name, size][0] == pytest.approx(float(result.nll.sum()) / tokens.numel())
        best = torch.stack([result.blocks for result in each.values()]).amin(0).sum()
        assert values["tightest", size][0] == pytest.approx(float(best) / tokens.numel())
    assert {size for _, size in values} == {1, 2, 4}


def test_likelihoods_come_from_the_loosest_to_hindsight() -> None:
    names = ("best_order", "margin", "tightest", "enumerate", "bound", "exact", "importance", "entropy")
    values = {(name, 4): [i + 0.0, i + 0.2] for i, name in enumerate(names) if name != "exact"}
    table = likelihoods.table({**values, ("exact", 1): [9.0, 9.0], ("bound", 2): [7.0, 7.0]})
    assert list(table.columns) == ["nats per token", "block size 1", "block size 2", "block size 4"]
    assert [row[0] for row in table.cells] == [
        "exact", "<= the bound", "<= importance-weighted bound", "random order, exact", "order: margin",
        "order: entropy", "best of these orders, in hindsight", "best of all one-token orders, in hindsight",
    ]  # fmt: skip
    assert table.cells[0][1:] == ["9.000 ± 0.000", None, None]
    assert table.cells[1][1:] == [None, "7.000 ± 0.000", "4.100 ± 0.100"]


# ---------------------------------------------------------------------------------------------------------------------
# Answers


def test_the_best_order_of_a_puzzle_comes_first() -> None:
    def answers(*solved: float, nfe: int = 12, right: float = 0.5) -> list[Answers]:
        return [Answers(share, 0.1, right, 10, nfe, 100, 1.0) for share in solved]

    found = {
        ("margin", 1): answers(0.9, 0.9), ("margin", 8): answers(0.2, 0.4),
        ("random", 1): answers(0.1, 0.1), ("random", 8): answers(0.5, 0.7, nfe=6, right=0.75),
    }  # fmt: skip
    group = solving.Group(load_config(None, []), [0, 1], [1, 8], 4, found)
    table = solving.table(group)
    assert list(table.columns[1:3]) == ["solved at 1, %", "solved at 8, %"]
    assert [row[:3] for row in table.cells] == [
        ["random", "10.0 ± 0.0", "60.0 ± 10.0"], ["margin", "90.0 ± 0.0", "30.0 ± 10.0"],
    ]  # fmt: skip
    assert [row[3:] for row in table.cells] == [["2.0", "75.0"], ["4.0", "50.0"]]  # ten answers in three batches
