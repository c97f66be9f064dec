"""Numerics: texts of samplers are those of their seeds, and the command writes what it prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import Command
from text_figures import entropy, options, per_token

from hybrid.experiments import (
    numerics,
)
from hybrid.experiments.measuring.subject import Subject
from hybrid.experiments.reverse_process import step_by_step
from hybrid.experiments.reverse_process.joint_sampler import (
    SAMPLERS,
)
from hybrid.lm import LanguageModel


def test_texts_of_samplers_are_those_of_their_seeds(lm: LanguageModel) -> None:
    """The bound is at the block size at which they were written, the exact likelihood at 1."""
    subject = Subject(lm, 4, 10)
    results = numerics.text_results(subject, options(seeds=[0, 3], rows=2, steps=[5]))
    for name, sampler in SAMPLERS.items():
        texts = [step_by_step.generate(lm.model, sampler, 2, 10, 4, 5, seed) for seed in (0, 3)]
        (found,) = (measured for measured in results if measured.sampler == name)
        assert found.entropy == pytest.approx([entropy(t.tokens.tolist()) for t in texts])
        assert found.bound == pytest.approx([per_token(lm, t.tokens, 4, "bound", draws=8) for t in texts])
        assert found.exact == pytest.approx([per_token(lm, t.tokens, 1, "exact") for t in texts])
        assert found.forwards == [t.forwards / 10 for t in texts] and found.bound[0] != found.bound[1]


def test_the_command_writes_what_it_prints(command: Command, trained: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("hybrid.experiments.numerics.ZIPF_VOCAB", 50)
    output = tmp_path / "docs" / "numerics.md"
    words = ["--checkpoint", trained, "--steps", 40, 2, "--rows", 2, "--samples", 50, "--seeds", 0, 1]
    done = command("experiments.numerics", *words, "--output", output)
    assert done.code == 0, done.err
    text = output.read_text()
    for line in done.out.splitlines():
        assert line in text
    assert "seeds 0, 1" in text and "--rows 2" in text and "exact, block size 1" in text
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    table = [line.split(" | ") for line in done.out.splitlines() if "decoupled" in line]
    assert [row[0].strip("| ") for row in table[-2:]] == ["2", "40"]


def test_without_a_checkpoint_or_an_output_nothing_is_written(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybrid.experiments.numerics.ZIPF_VOCAB", 50)
    monkeypatch.chdir(tmp_path)
    done = command("experiments.numerics", "--samples", 50, "--seeds", 0)
    assert done.code == 0 and "Zipf" in done.out and "Texts" not in done.out
    assert list(tmp_path.iterdir()) == []


BAD = [
    ("--steps 0", "--steps: 0 must be at least 1"),
    ("--samples 0", "--samples: 0 must be at least 1"),
    ("--seeds", "--seeds: expected at least one argument"),
    ("--length 33", r"--length: 33 exceeds the model's context of 32"),
    ("--block-size 64", "block_size: 64 is larger than data.seq_len = 32"),
]


@pytest.mark.parametrize("words, message", BAD, ids=[words for words, _ in BAD])
def test_a_wrong_option_is_one_line(words: str, message: str, command: Command, trained: Path) -> None:
    error = command("experiments.numerics", "--checkpoint", trained, *words.split()).error
    assert re.search(message, error), error


def test_a_file_of_another_kind_is_not_replaced(command: Command, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("mine")
    assert (
        "was not written by an experiment" in command("experiments.numerics", "--output", tmp_path / "notes.md").error
    )
    assert (tmp_path / "notes.md").read_text() == "mine"
