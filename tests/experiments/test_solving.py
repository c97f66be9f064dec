"""Right answers by decoder: what the table holds comes from the runs, and runs must belong together."""

from __future__ import annotations

from typing import Any

import pytest
from text_figures import options

from hybrid.config import load_config
from hybrid.data.batches import PackedTokens
from hybrid.evaluation.answers import Answers
from hybrid.experiments import (
    solving,
)
from hybrid.lm import LanguageModel


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


def test_puzzles_are_answered_with_the_seed_and_the_temperature_that_are_asked_for(
    lm: LanguageModel, split: PackedTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def score(engine: Any, split: Any, rows: int, batch_rows: int) -> Answers:
        asked.append((engine.block_size, engine.config.temperature, engine.config.seed, rows, batch_rows))
        return Answers(0.5, 0.1, 0.5, 10, 4, 100, 1.0)

    monkeypatch.setattr("hybrid.evaluation.answers.score", score)
    monkeypatch.setattr("hybrid.experiments.measuring.subject.load_runs", lambda runs, device: [lm])
    arguments = options(device="cpu", block_size=[4, 1], temperature=0.7, seed=5, rows=6, batch_rows=3)
    group = solving.solve(["x"], {"margin": "margin"}, arguments)
    assert asked == [(4, 0.7, 5, 6, 3), (1, 0.7, 5, 6, 3)] and list(group.answers) == [("margin", 4), ("margin", 1)]


def test_shares_of_right_answers_over_runs(command, runs, tmp_path):
    output = tmp_path / "solving.md"
    words = ("--runs", *runs, "--decoders", "margin", "margin:per_step=3", "--rows", 10, "--output", output)
    done = command("experiments.solving", *words)
    assert done.code == 0, done.err
    lines = [line.split("|")[1:-1] for line in done.out.splitlines() if line.startswith("|")]
    head, *body = [[cell.strip() for cell in line] for line in lines if "---" not in line[0]]
    assert head[:3] == ["decoder", "solved at 1, %", "solved at 3, %"]
    assert {row[0]: row[3] for row in body} == {"margin": "3.0", "margin:per_step=3": "1.0"}, "forwards of a batch"
    assert all("±" in cell for row in body for cell in row[1:3])
    text = output.read_text(encoding="utf-8")
    assert done.out.strip() in text and "seeds 0, 1" in text and "10 answers of each of 2 runs" in text


def test_runs_of_different_settings_are_refused(command, runs, trained):
    assert "differs from" in command("experiments.solving", "--runs", runs[0], trained, "--rows", 2).error
    no_answers = command("experiments.solving", "--runs", trained, "--rows", 2)
    assert no_answers.code == 2 and "no prompts" in no_answers.error
