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


@pytest.mark.parametrize("when, step", [("trainer.eval_every=1", 1), ("trainer.eval_every=0", 2)])
def test_a_validation_is_cut_short_and_made_up_for(
    when: str, step: int, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Between two of its batches; the next validation is as if there had been no signal."""
    options = [when, "trainer.save_every=0", "trainer.steps=2", "eval.batch_rows=1", "eval.sample_tokens=0"]
    whole = read_metrics(train(configure(tmp_path / "whole", *options)))
    batches = 0

    def stopped(*arguments: Any) -> Any:
        nonlocal batches
        batches += 1
        os.kill(os.getpid(), signal.SIGTERM)
        assert "SIGTERM: saving what is trained, then stopping" in capfd.readouterr().err
        return original(*arguments)

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        original = rows.monte_carlo
        patch.setattr(rows, "monte_carlo", stopped)
        folder = train(configure(tmp_path / "cut", *options))
    assert batches == 1
    assert f"stopped by SIGTERM at step {step}, saved; go on with trainer.resume=auto" in caplog.text
    assert not any("val/nelbo" in record for record in read_metrics(folder))
    ends = [whole, read_metrics(train(configure(tmp_path / "cut", *options, "trainer.resume=auto")))]
    first, again = [[r["val/nelbo"] for r in records if "val/nelbo" in r][-1] for records in ends]
    assert first == again


def test_what_takes_long_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.announced("validating ..."):
        pass
    monkeypatch.setattr(progress, "DELAY", 0.0)
    for is_said in (False, True):
        with progress.announced("validating ...", is_said):
            time.sleep(0.05)
    assert capsys.readouterr().err == "validating ...\n"
