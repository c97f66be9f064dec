"""Resuming: exactly from a checkpoint, and after a signal or a kill."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Configure
from training_toy import assert_same_tensors, before_step, tensors_of, train

from hybrid.checkpoints import finding
from hybrid.runs.resuming import Beginning, ResumePlan
from hybrid.runs.run import Run
from hybrid.training.metrics import read_metrics


@pytest.fixture
def signals_that_nobody_catches_fail() -> Iterator[None]:
    """Without it, a trainer that does not catch SIGTERM would end the whole test session."""

    def fail(number: int, frame: Any) -> None:
        raise AssertionError(f"{signal.Signals(number).name} was not caught")

    old = {number: signal.signal(number, fail) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


# ---------------------------------------------------------------------------------------------------------------------
# Resuming


@pytest.mark.thin(2)
@pytest.mark.usefixtures("signals_that_nobody_catches_fail")
@pytest.mark.parametrize(
    "optimizer, others",
    [
        ("adamw", []),
        ("muon", []),
        ("muon", ["objective.complementary=true", "objective.draws=2"]),
    ],
)
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_resuming_is_bit_identical_with_never_having_stopped(
    optimizer: str, others: list[str], kind: signal.Signals, configure: Configure, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO, logger="hybrid")
    options = [*others, f"optim.name={optimizer}", "trainer.micro_batch_tokens=64", "trainer.save_every=0"]
    whole = train(configure(tmp_path / "whole", *options))
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, lambda step: os.kill(os.getpid(), kind) if step == 5 else None)
        parts = train(configure(tmp_path / "parts", *options))
    assert f"stopped by {kind.name} at step 6, saved; go on with trainer.resume=auto" in caplog.text
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert finding.step_of(finding.find_checkpoint(parts)) == 6
    train(configure(tmp_path / "parts", *options, "trainer.resume=auto"))
    assert "resumed at step 6" in caplog.text

    last = [finding.find_checkpoint(folder) for folder in (whole, parts)]
    assert [path.name for path in last] == ["step-00000008"] * 2
    a, b = map(tensors_of, last)
    assert {name.split("/")[0] for name in a} == {"model", "optimizer", "ema"}
    assert any(not torch.equal(t, a[f"model/{name[4:]}"]) for name, t in a.items() if name.startswith("ema/"))
    assert_same_tensors(a, b)
    assert finding.read_state(last[0]) == finding.read_state(last[1])
    ends = [read_metrics(folder)[-1] for folder in (whole, parts)]
    assert ends[0]["val/nelbo"] == ends[1]["val/nelbo"]
    assert ends[0]["val_by_count/b4/n001"] == ends[1]["val_by_count/b4/n001"]


def test_an_earlier_checkpoint_can_be_gone_back_to(configure: Configure, copy_of_trained: Path) -> None:
    before = tensors_of(copy_of_trained / "checkpoints" / "step-00000008")
    config = configure(copy_of_trained.parent, f"trainer.resume={copy_of_trained / 'checkpoints' / 'step-00000004'}")
    train(config)
    assert_same_tensors(before, tensors_of(copy_of_trained / "checkpoints" / "step-00000008"))
    steps = [record["step"] for record in read_metrics(copy_of_trained)]
    assert steps == sorted(steps)


def test_a_checkpoint_of_another_run_does_not_get_mixed_into_a_full_folder(
    configure: Configure, trained: Path, copy_of_trained: Path
) -> None:
    other = trained / "checkpoints" / "step-00000004"
    with pytest.raises(ValueError, match=r"run\.folder: .* is not empty; choose another run\.name"):
        Run.of(configure(copy_of_trained.parent, f"trainer.resume={other}")).open()


def test_a_run_that_was_killed_before_its_first_save_starts_over(configure: Configure, copy_of_trained: Path) -> None:
    shutil.rmtree(copy_of_trained / "checkpoints")
    lines = (copy_of_trained / "metrics.jsonl").read_text()
    train(configure(copy_of_trained.parent, "trainer.resume=auto"))
    assert finding.step_of(finding.find_checkpoint(copy_of_trained)) == 8
    steps = [record["step"] for record in read_metrics(copy_of_trained)]
    assert steps == sorted(steps) and steps.count(2) == 1
    assert (copy_of_trained / "metrics.jsonl.superseded").read_text() == lines


def test_a_folder_that_holds_something_is_not_overwritten(configure: Configure, copy_of_trained: Path) -> None:
    before = {path: path.read_bytes() for path in copy_of_trained.rglob("*") if path.is_file()}
    with pytest.raises(ValueError) as caught:
        Run.of(configure(copy_of_trained.parent)).open()
    for way_out in ("trainer.resume=auto", "run.name", "remove the folder", str(copy_of_trained)):
        assert way_out in str(caught.value)
    assert {path: path.read_bytes() for path in copy_of_trained.rglob("*") if path.is_file()} == before


def test_a_model_without_a_step_is_a_start_and_no_run(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model.safetensors").touch()
    with pytest.raises(ValueError, match=r"^trainer.resume: .*theirs: is not .*with trainer\.init_from=.*theirs$"):
        ResumePlan.of(configure(tmp_path, f"trainer.resume={tmp_path / 'theirs'}"))


def test_a_folder_of_other_things_is_not_taken_for_a_run(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty; choose another"):
        Run.of(configure(tmp_path, "trainer.resume=auto")).open()


@pytest.mark.parametrize(
    "changed",
    ["model.dim=32", "model.context=causal", "objective.block_size=8", "optim.ema_decay=0", "data.seq_len=16"],
)
def test_a_resumed_run_is_the_same_run(changed: str, configure: Configure, copy_of_trained: Path) -> None:
    key = changed.split("=")[0]
    with pytest.raises(ValueError, match=rf"^{key}: .*, but the run to resume has .*init_from$"):
        Run.of(configure(copy_of_trained.parent, "trainer.resume=auto", changed))


def test_what_belongs_to_the_machine_may_change(
    configure: Configure, copy_of_trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    harmless = ["eval.rows=2", f"data.cache_dir={tmp_path / 'cache'}", "decoder=confidence", "trainer.log_every=3"]
    run = Run.of(configure(copy_of_trained.parent, "trainer.resume=auto", *harmless))
    assert run.plan.checkpoint == copy_of_trained / "checkpoints" / "step-00000008"
    assert "not as if it had never stopped" not in caplog.text
    Run.of(configure(copy_of_trained.parent, "trainer.resume=auto", "trainer.steps=9"))
    assert "trainer.steps: 9 instead of 8: the run goes on, but not as if it had never stopped" in caplog.text


@pytest.mark.parametrize(
    "words, checkpoints, name, beginning, last_step",
    [
        ("never", True, "new", Beginning.FRESH, None),
        ("auto", True, "new", Beginning.FRESH, None),
        ("never", True, "tiny", Beginning.FRESH, None),
        ("auto", False, "tiny", Beginning.OVER, -1),
        ("auto", True, "tiny", Beginning.IN_PLACE, 8),
        ("checkpoints/step-00000004", True, "tiny", Beginning.IN_PLACE, 4),
        ("", True, "new", Beginning.FROM_ANOTHER, 8),
    ],
)
def test_how_a_run_begins(
    words: str, checkpoints: bool, name: str, beginning: Beginning, last_step: int | None, configure: Configure,
    copy_of_trained: Path,
) -> None:  # fmt: skip
    if not checkpoints:
        shutil.rmtree(copy_of_trained / "checkpoints")
    resume = words if words in ("never", "auto") else copy_of_trained / words
    plan = ResumePlan.of(configure(copy_of_trained.parent, f"run.name={name}", f"trainer.resume={resume}"))
    assert (plan.beginning, plan.last_step, plan.differs) == (beginning, last_step, ())
    assert plan.folder == copy_of_trained.parent / name
    assert plan.run == (copy_of_trained if last_step in (4, 8) else None)


def test_a_run_that_is_refused_is_not_said_to_go_on(
    configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "c").mkdir()
    for number in range(40):
        (tmp_path / "c" / f"{number}.txt").write_text(f"text of many words {number} " * 30)
    few = ["trainer.steps=1", "eval.sample_tokens=0", f"data.corpus={tmp_path / 'c'}"]
    train(configure(tmp_path / "runs", *few))
    longer = configure(tmp_path / "runs", *few, "trainer.resume=auto", "trainer.steps=2")
    Run.of(longer)
    goes_on = "trainer.steps: 2 instead of 1: the run goes on, but not as if it had never stopped"
    assert caplog.messages.count(goes_on) == 1
    caplog.clear()
    (tmp_path / "c" / "0.txt").write_text("another text")
    with pytest.raises(ValueError, match="is not the text that"):
        Run.of(longer)
    assert "the run goes on" not in caplog.text


# ---------------------------------------------------------------------------------------------------------------------
# Signals to a process of its own


@contextlib.contextmanager
def process(words: list[str], environment: dict[str, str]):
    """train.py in a process; killed at the end if it still runs."""
    script = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *words], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield script
    finally:
        script.kill()
        script.communicate()


def wait_for(condition, script: subprocess.Popen[str], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert script.poll() is None, script.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def lines_in(path: Path) -> int:
    return len(path.read_bytes().splitlines()) if path.is_file() else 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_cleanly(
    kind: signal.Signals, overrides, configure: Configure, tmp_path: Path, environment_of_a_child: dict[str, str]
) -> None:
    endless = ["trainer.steps=1000000", "trainer.eval_every=0", "trainer.save_every=0"]
    with process([*overrides(tmp_path), *endless], environment_of_a_child) as script:
        wait_for(lambda: lines_in(tmp_path / "tiny" / "metrics.jsonl") >= 3, script)
        script.send_signal(kind)
        out, err = script.communicate(timeout=30)
    assert script.returncode == 0, err
    assert f"stopped by {kind.name} at step" in err and "Traceback" not in err
    assert out == ""
    step = finding.step_of(finding.find_checkpoint(tmp_path / "tiny"))
    assert step >= 4
    train(configure(tmp_path, *endless, f"trainer.steps={step + 2}", "trainer.resume=auto"))
    assert finding.step_of(finding.find_checkpoint(tmp_path / "tiny")) == step + 2


@pytest.mark.slow
def test_a_killed_run_resumes(
    overrides, configure: Configure, tmp_path: Path, environment_of_a_child: dict[str, str]
) -> None:
    """SIGKILL at any moment; with a save after every step it is often in the middle of one."""
    always = ["trainer.steps=1000000", "trainer.eval_every=0", "trainer.save_every=1", "trainer.log_every=1"]
    with process([*overrides(tmp_path), *always], environment_of_a_child) as script:
        wait_for(lambda: lines_in(tmp_path / "tiny" / "metrics.jsonl") >= 5, script)
        script.send_signal(signal.SIGKILL)
        script.communicate()
    assert script.returncode == -signal.SIGKILL
    step = finding.step_of(finding.find_checkpoint(tmp_path / "tiny"))
    assert step >= 3
    train(configure(tmp_path, *always, f"trainer.steps={step + 2}", "trainer.resume=auto"))
    assert finding.step_of(finding.find_checkpoint(tmp_path / "tiny")) == step + 2
    steps = [record["step"] for record in read_metrics(tmp_path / "tiny") if "optim/lr" in record]
    assert steps == list(range(1, step + 3))
    assert not [path for path in (tmp_path / "tiny" / "checkpoints").iterdir() if path.name.startswith(".")]


@pytest.mark.usefixtures("signals_that_nobody_catches_fail")
def test_a_signal_during_the_last_evaluation_loses_nothing(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(tmp_path, "trainer.eval_every=0", "trainer.save_every=0", "trainer.steps=2")

    def interrupted(self) -> dict[str, float]:
        assert finding.step_of(finding.find_checkpoint(tmp_path / "tiny")) == 2
        os.kill(os.getpid(), signal.SIGTERM)
        raise KeyboardInterrupt  # what a second signal does

    monkeypatch.setattr("hybrid.runs.run.Validator.__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    assert finding.step_of(finding.find_checkpoint(tmp_path / "tiny")) == 2
