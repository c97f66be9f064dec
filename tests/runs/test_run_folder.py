"""The folder of a run: what is started over, what is refused before any work, what is cleaned."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, Configure
from event_files import events_of
from training_toy import before_step, train

from hybrid.checkpoints import finding, saving
from hybrid.data.tokenizers import ByteTokenizer
from hybrid.runs import run_folder
from hybrid.runs.run import Run
from hybrid.runs.run_folder import open_folder
from hybrid.training.metrics import read_metrics
from hybrid.training.signals import StopSignal
from hybrid.training.tracking import Tracker
from hybrid.training.validation import Validator


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("left", [[".config.yaml.1.tmp"], [".config.yaml.1.tmp", ".config.yaml.77.tmp"], []])
@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_run_that_was_killed_while_it_wrote_its_configuration_starts_over(
    left: list[str], resume: str, configure: Configure, tmp_path: Path
) -> None:
    """With nothing but that in the folder there is nothing to lose, whether it resumes or not."""
    (tmp_path / "tiny").mkdir()
    for name in left:
        (tmp_path / "tiny" / name).write_text("run:\n  na")
    Run.of(configure(tmp_path, f"trainer.resume={resume}")).open()
    assert entries(tmp_path / "tiny") == ["config.yaml", "environment.json", "samples", "tokenizer"]


@pytest.mark.parametrize("name", ["notes.txt", ".metrics.jsonl.1.tmp", ".config.yaml.swp"])
def test_anything_else_beside_it_is_somebody_elses(name: str, configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    for one in (".config.yaml.1.tmp", name):
        (tmp_path / "tiny" / one).write_text("half")
    with pytest.raises(ValueError, match="is not empty"):
        Run.of(configure(tmp_path, "trainer.resume=auto")).open()
    assert name in entries(tmp_path / "tiny")


def test_what_a_killed_run_left_anywhere_in_its_folder_is_gone_after_resuming(
    configure: Configure, copy_of_trained: Path
) -> None:
    left = [
        ".config.yaml.1.tmp", ".environment.json.1.tmp", ".metrics.jsonl.1.tmp", "samples/.step-00000008.txt.1.tmp",
        "checkpoints/.latest.1.tmp", "checkpoints/.best.1.tmp", "checkpoints/.step-00000009.1.tmp/model.safetensors",
    ]  # fmt: skip
    for name in left:
        (copy_of_trained / name).parent.mkdir(exist_ok=True)
        (copy_of_trained / name).write_text("half")
    train(configure(copy_of_trained.parent, "trainer.resume=auto", "trainer.steps=9"))
    assert [path for path in copy_of_trained.rglob("*") if path.name.startswith(".")] == []
    assert finding.step_of(finding.find_checkpoint(copy_of_trained)) == 9


def test_where_there_is_no_place_for_a_run_is_said_before_any_work(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybrid.runs.preparation.prepare", lambda config: pytest.fail("data was prepared"))
    (tmp_path / "file").write_text("x")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for folder, override, words in (
        (tmp_path / "file", "run.name=tiny", "file' is not a folder; choose another"),
        (tmp_path / "file" / "deeper", "run.name=tiny", "file' is not a folder"),
        (tmp_path / "nowhere", "run.name=tiny", "nowhere' is not a folder"),
        (tmp_path, f"run.name={'n' * 300}", "longer than the file system takes"),
        (tmp_path, f"run.name={'/'.join(['n' * 100] * 40)}", "a path has at most 4096 bytes"),
        (tmp_path, f"run.name={'ü' * 200}", "a name has at most 255 bytes"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            Run.of(configure(folder, override))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    monkeypatch.setattr(run_folder.os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=r"^run\.folder: .* is read-only for this user"):
        Run.of(configure(tmp_path))
    assert entries(tmp_path) == ["file", "nowhere"]


def test_a_fact_that_cannot_be_written_leaves_no_folder_behind(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.txt")
    with pytest.raises(ValueError, match="is not UTF-8"):
        open_folder(tmp_path / "run", "run: {}\n", {"data": {"files": [name]}}, ByteTokenizer())
    assert not (tmp_path / "run").exists()


def test_a_folder_that_vanishes_while_the_run_trains_is_one_line(
    command: Command, overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanish(step: int) -> None:
        while step == 3 and (tmp_path / "tiny").exists():  # TensorBoard's thread may write a file while it is emptied
            shutil.rmtree(tmp_path / "tiny", ignore_errors=True)

    before_step(monkeypatch, vanish)
    done = command("train.py", *overrides(tmp_path))
    assert done.code == 2 and "Traceback" not in done.err
    assert done.err.splitlines()[-1].startswith("error: ") and "is gone" in done.err.splitlines()[-1]
    assert not (tmp_path / "tiny").exists()


def test_a_finished_run_that_is_resumed_does_nothing_a_second_time(
    configure: Configure, copy_of_trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing in metrics.jsonl, TensorBoard, samples or checkpoints is written again, or lost."""
    watched = ["metrics.jsonl", "samples/step-00000008.txt", "checkpoints/latest", "checkpoints/best"]
    watched += ["checkpoints/step-00000008/manifest.json", "checkpoints/step-00000004/manifest.json"]

    def look() -> dict[str, tuple[bytes, int]]:
        files = [copy_of_trained / name for name in watched]
        return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}

    before = look()
    tags = {tag: len(events) for tag, events in events_of(copy_of_trained).items() if tag != "session_log"}
    for _ in range(2):
        with caplog.at_level("INFO", logger="hybrid"):
            train(configure(copy_of_trained.parent, "trainer.resume=auto"))
    assert "the run had ended at step 8 already" in caplog.text
    assert look() == before
    again = {tag: len(events) for tag, events in events_of(copy_of_trained).items() if tag != "session_log"}
    assert again == tags


def test_a_run_that_was_killed_before_its_last_validation_makes_it_up(
    configure: Configure, copy_of_trained: Path
) -> None:
    lines = (copy_of_trained / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert "val/nelbo" in lines[-1] and "val/nelbo" not in lines[-2]
    (copy_of_trained / "metrics.jsonl").write_text("".join(lines[:-1]))
    (copy_of_trained / "samples" / "step-00000008.txt").unlink()
    train(configure(copy_of_trained.parent, "trainer.resume=auto"))
    records = read_metrics(copy_of_trained)
    assert [r["step"] for r in records if "val/nelbo" in r] == [4, 8]
    assert records[-1]["val/nelbo"] == json.loads(lines[-1])["val/nelbo"]
    assert (copy_of_trained / "samples" / "step-00000008.txt").is_file()


def test_going_back_to_an_earlier_checkpoint_as_the_end_saves_it_as_the_latest(
    configure: Configure, copy_of_trained: Path
) -> None:
    earlier = copy_of_trained / "checkpoints" / "step-00000004"
    train(configure(copy_of_trained.parent, f"trainer.resume={earlier}", "trainer.steps=4"))
    assert finding.find_checkpoint(copy_of_trained) == earlier
    records = read_metrics(copy_of_trained)
    assert [r["step"] for r in records if "val/nelbo" in r] == [4] and records[-1]["step"] == 4


def test_a_run_that_a_time_cap_ends_where_it_was_just_evaluated_is_not_evaluated_again(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = itertools.count()
    monkeypatch.setattr(StopSignal, "is_seen", lambda self, is_late=False: is_late and next(steps) == 4)
    folder = train(configure(tmp_path, "trainer.minutes=1e-9"))
    records = read_metrics(folder)
    assert [r["step"] for r in records if "val/nelbo" in r] == [4]
    assert any("gen/tokens_per_forward" in r for r in records)


def test_a_stopped_run_shows_no_final_metrics(configure: Configure, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 5 else None)
        folder = train(configure(tmp_path))
    assert "final/val/nelbo" not in events_of(folder)
    train(configure(tmp_path, "trainer.resume=auto"))
    assert [step for step, _ in events_of(folder)["final/val/nelbo"]] == [8]


def die(*arguments: Any, **options: Any) -> None:
    """As a kill at this moment would."""
    raise SystemExit(9)


@pytest.mark.slow
def test_a_checkpoint_that_was_saved_and_not_yet_marked_is_the_best_after_resuming(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rising = iter([1.0, 2.0, 3.0, 4.0])
    validate = Validator.__call__
    monkeypatch.setattr(Validator, "__call__", lambda self: {**validate(self), "val/nelbo": next(rising)})
    options = ["trainer.save_every=2", "trainer.eval_every=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "mark_best", die)
        with pytest.raises(SystemExit):
            train(configure(tmp_path, *options))
    checkpoints = train(configure(tmp_path, *options, "trainer.resume=auto")) / "checkpoints"
    assert finding.read_best(checkpoints) == (checkpoints / "step-00000002", 1.0)


@pytest.mark.slow
def test_what_is_shown_at_the_end_is_there_before_the_run_counts_as_finished(
    configure: Configure, tmp_path: Path
) -> None:
    """Killed before the last record, the run shows it again; with that record, everything is on the disk."""
    shown: list[set[str]] = []
    log = Tracker.log

    def look(tracker: Tracker, step: int, values: Any, *, is_last: bool = False) -> None:
        if is_last and not shown:
            tracker._metrics.append = die  # type: ignore[method-assign]
        try:
            log(tracker, step, values, is_last=is_last)
        finally:
            if is_last:
                shown.append({tag for tag, events in events_of(tmp_path / "tiny").items() for e in events if e[0] == 8})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tracker, "log", look)
        with pytest.raises(SystemExit):
            train(configure(tmp_path))
        assert not any("val/nelbo" in record for record in read_metrics(tmp_path / "tiny") if record["step"] == 8)
        train(configure(tmp_path, "trainer.resume=auto"))
    assert {"final/val/nelbo", "val/nelbo", "loss_by_count/b4", "unmasking_order/first_hitting"} <= shown[0] & shown[1]
    assert [record["step"] for record in read_metrics(tmp_path / "tiny") if "val/nelbo" in record].count(8) == 1
