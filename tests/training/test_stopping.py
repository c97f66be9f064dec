"""A signal while a run is validating."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Configure
from training_toy import train

from hybrid import progress
from hybrid.likelihoods import rows
from hybrid.training.metrics import read_metrics


@pytest.mark.parametrize("every", [1, 0])
def test_a_signal_while_validating(
    every: int, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The last validation ends between two of its batches, and the resumed run makes up for it. An earlier one is
    finished. Either way the run ends as one that was never stopped."""
    options = [f"trainer.eval_every={every}", "trainer.save_every=0", "trainer.steps=2", "eval.batch_rows=1"]
    options += ["eval.sample_tokens=0"]
    whole = read_metrics(train(configure(tmp_path / "whole", *options)))
    batches = 0

    def stopped(*arguments: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            assert "SIGTERM: saving what is trained, then stopping" in capfd.readouterr().err
        return original(*arguments)

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        original = rows.monte_carlo
        patch.setattr(rows, "monte_carlo", stopped)
        folder = train(configure(tmp_path / "cut", *options))
    assert f"stopped by SIGTERM at step {2 - every}, saved; go on with trainer.resume=auto" in caplog.text
    assert (batches == 1) == (every == 0) and len(validations(read_metrics(folder))) == every
    resumed = read_metrics(train(configure(tmp_path / "cut", *options, "trainer.resume=auto")))
    assert validations(resumed) == validations(whole) and len(validations(whole)) == 1 + every


def validations(records: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(record["step"], record["val/nelbo"]) for record in records if "val/nelbo" in record]


def test_what_takes_long_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.announced("validating ..."):
        pass
    monkeypatch.setattr(progress, "DELAY", 0.0)
    for is_said in (False, True):
        with progress.announced("validating ...", is_said):
            time.sleep(0.05)
    assert capsys.readouterr().err == "validating ...\n"
