"""Discretisation: texts of a grid are those of their seeds, and the command writes what it prints."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Command
from text_figures import entropy, options, per_token

from hybrid.decoding.engine import Generation
from hybrid.experiments import (
    discretisation,
)
from hybrid.experiments.measuring.subject import Subject
from hybrid.experiments.reverse_process.ancestral_law import (
    Toy,
)
from hybrid.lm import LanguageModel


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy.make(seed=0)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_command_writes_what_it_prints(command: Command, trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "docs" / "discretisation.md"
    words: list[Any] = [
        "--checkpoint",
        trained,
        "--steps",
        4,
        1,
        "--schedules",
        "linear",
        "--rows",
        2,
        "--device",
        "cpu",
    ]
    words += ["--samples", 500, "--seeds", 0, 1, "--length", 10, "--output", output]
    done = command("experiments.discretisation", *words)
    assert done.code == 0, done.err
    text = output.read_text()
    for line in done.out.splitlines():
        assert line in text
    assert output.with_suffix(".png").exists() and output.with_name("discretisation-2.png").exists()
    lines = [cells(line) for line in done.out.splitlines() if line.startswith(("| linear", "| first_hitting"))]
    assert [line[:2] for line in lines] == 2 * [["linear", "1"], ["linear", "4"], ["first_hitting", "-"]]
    one, four, exact = lines[3:]
    # Three blocks of 4 tokens, the last one cut to 2: a forward each at one step, 4 (1 - (3/4)^4) at four.
    assert one[2:4] == ["0.300", "0.300 ± 0.000"]
    assert four[2] == f"{3 * 4 * (1 - 0.75**4) / 10:.3f}"
    assert exact[2:4] == ["1.200", "1.200 ± 0.000"]


def test_without_an_output_nothing_is_written(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command("experiments.discretisation", "--steps", 2, "--samples", 200, "--schedules", "linear")
    assert done.code == 0 and "Enumerated toy" in done.out and "Texts" not in done.out
    assert list(tmp_path.iterdir()) == []


BAD = [
    ("--steps 0", "--steps: 0 must be at least 1"),
    ("--rows 0", "--rows: 0 must be at least 1"),
    ("--schedules linaer", "--schedules: 'linaer' is not one of .*did you mean 'linear'"),
    ("--length 33", "--length: 33 exceeds the model's context of 32"),
    ("--block-size 64", "block_size: 64 is larger than data.seq_len = 32"),
]


@pytest.mark.parametrize("words, message", BAD, ids=[words for words, _ in BAD])
def test_a_wrong_option_is_one_line(words: str, message: str, command: Command, trained: Path) -> None:
    error = command("experiments.discretisation", "--checkpoint", trained, *words.split()).error
    assert re.search(message, error), error


def test_texts_of_a_grid_are_those_of_their_seeds(lm: LanguageModel) -> None:
    """Row r of seed s has the seed s R + r, so that no two texts share one."""
    arguments = options(seeds=[0, 2], rows=3, schedules=["linear"], steps=[2])
    results = discretisation.text_results(Subject(lm, 4, 10), arguments)
    for (schedule, steps), measured in results.items():
        decoder = "first_hitting" if schedule is None else {"name": "ancestral", "steps": steps, "schedule": schedule}
        texts = [
            [lm.generate([[]], 10, 4, decoder, seed=3 * seed + r, stop_at_end=False) for r in range(3)]
            for seed in (0, 2)
        ]
        rows = [[text.tokens[0] for text in of_seed] for of_seed in texts]
        assert measured.entropy == pytest.approx([entropy(of_seed) for of_seed in rows])
        assert measured.forwards == pytest.approx([sum(text.nfe for text in of_seed) / 30 for of_seed in texts])
        bounds = [per_token(lm, torch.tensor(of_seed), 4, "bound", draws=8) for of_seed in rows]
        assert measured.bound == pytest.approx(bounds)
    assert list(results) == [("linear", 2), (None, None)]


def test_times_of_texts_are_per_token(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three texts of ten tokens, written one by one: the median of 1, 2 and 5 seconds."""
    seconds = itertools.cycle([1.0, 5.0, 2.0])

    def generate(*arguments: Any, **more: Any) -> Generation:
        return Generation([[1] * 10], nfe=5, seconds=next(seconds))

    subject = Subject(SimpleNamespace(generate=generate, config=lm.config), 4, 10)  # type: ignore[arg-type]
    monkeypatch.setattr(Subject, "nats", lambda self, tokens: 2.5)
    lm.generate([[]], 1)
    next(seconds), next(seconds)
    arguments = options(seeds=[0], rows=3, schedules=["linear"], steps=[2])
    for measured in discretisation.text_results(subject, arguments).values():
        assert measured.milliseconds == [200.0] and measured.forwards == [0.5] and measured.bound == [2.5]
