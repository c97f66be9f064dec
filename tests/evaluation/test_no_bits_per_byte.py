"""A run whose tokenizer does not give the text back: a dash wherever bits per byte would be, and no other number."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Command
from foreign_tokenizers import wordpiece

from hybrid.training.metrics import read_metrics

WORDS = ("the", "value", "of", "a", "list", "is", "set", "by", "its", "name", "and", "when", "no", "key", "exists")


@pytest.fixture
def lossy(overrides: Callable[[Path], list[str]], tmp_path: Path) -> list[str]:
    """The words of a command line that trains on lower-cased words."""
    return [*overrides(tmp_path), f"data.tokenizer={wordpiece(tmp_path / 'words.json', WORDS)}"]


@pytest.mark.slow
def test_training_evaluation_and_report(lossy: list[str], tmp_path: Path, command: Command) -> None:
    run = tmp_path / "tiny"
    done = command("train.py", *lossy)
    assert done.code == 0, done.err
    assert done.err.count("does not give the text back: 24 of 24 documents") == 1
    assert "nats per token, - bits per byte" in done.err
    records = read_metrics(run)
    assert any("val/nelbo" in record for record in records)
    assert not any("bits_per_byte" in tag for record in records for tag in record)
    assert json.loads((run / "environment.json").read_text())["data"]["is_lossless"] is False

    def reported() -> list[dict[str, str]]:
        done = command("report.__main__", run, "--output", tmp_path / "page")
        assert done.code == 0, done.err
        markdown = (tmp_path / "page" / "report.md").read_text()
        assert "nan" not in markdown.lower() and "block_size.png" not in markdown
        (line,) = [line for line in markdown.splitlines() if line.startswith("| tiny | 4 |")]
        assert line.split("|")[6].strip() == "-"
        return list(csv.DictReader((tmp_path / "page" / "runs.csv").read_text().splitlines()))

    assert [row["bits_per_byte"] for row in reported()] == ["", ""]  # from the last validation
    done = command("evaluate", "--checkpoint", run, "--rows", 4, "--device", "cpu")
    assert done.code == 0, done.err
    assert [line.split()[-1] for line in done.out.splitlines()[2:-1]] == ["-", "-"]
    results = json.loads((run / "eval.json").read_text())["results"]
    assert [line["bits_per_byte"] for line in results] == [None, None]
    assert [row["bits_per_byte"] for row in reported()] == ["", ""]  # from eval.json


@pytest.mark.slow
def test_a_sweep_shows_a_dash(lossy: list[str], tmp_path: Path, command: Command) -> None:
    from hybrid.config import load_config
    from hybrid.sweep.plan import Planned
    from hybrid.sweep.state import state_of, table

    assert command("train.py", *lossy).code == 0
    planned = Planned("tiny", load_config(None, lossy), [])
    state = state_of(planned)
    assert state.is_finished and state.nelbo is not None and state.bits_per_byte is None
    assert table([planned], {"tiny": state}).splitlines()[2].split()[-2] == "-"


def test_of_an_empty_name_nothing_is_evaluated(trained: Path, tmp_path: Path, command: Command, monkeypatch) -> None:
    (tmp_path / "a.txt").write_text("the value of a list. " * 99)
    monkeypatch.chdir(tmp_path)
    evaluate = ("evaluate", "--checkpoint", trained, "--device", "cpu", "--output", tmp_path / "e.json", "--rows", 2)
    assert command(*evaluate, "--data", "").error.startswith("error: --data: '' is empty")
    (tmp_path / "notes").write_text("The value of a list.\n\nBy its name and key.\n" * 99)
    assert "set data.format" in command(*evaluate, "--data", "notes").error
    done = command(*evaluate, "--data", "notes", "--format", "text")
    assert done.code == 0, done.err


def test_an_empty_corpus_is_refused_before_anything_is_written(
    overrides: Callable[[Path], list[str]], tmp_path: Path, command: Command
) -> None:
    for corpus in ("", "caf\udce9.txt"):
        done = command("train.py", *overrides(tmp_path), f"data.corpus={corpus}")
        assert done.error.startswith("error: data.corpus: ")
        assert not (tmp_path / "tiny").exists()
