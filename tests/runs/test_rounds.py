"""Distillation in rounds: the model of one run is the teacher of the next, and each round resumes on its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Configure
from training_toy import ALWAYS_SAVE, assert_same_tensors, before_step, tensors_of, train


@pytest.mark.slow
def test_a_round_learns_from_the_one_before(
    configure: Configure, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It records who its teacher was, and goes on after a stop as if there had been none."""

    def round_of(run: str, teacher: Path, *words: str) -> Path:
        start = ["objective.name=sdtt", f"objective.teacher={teacher}", f"trainer.init_from={teacher}"]
        return train(configure(tmp_path, *start, f"run.name={run}", *ALWAYS_SAVE, "trainer.steps=2", *words))

    first = round_of("first", trained, "trainer.steps=1")
    second = round_of("second", first, "objective.name.per_step=2")

    def stop(step: int) -> None:
        if step == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        before_step(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            round_of("stopped", first, "objective.name.per_step=2")
    resumed = round_of("stopped", first, "objective.name.per_step=2", "trainer.resume=auto")
    teachers = [json.loads((run / "environment.json").read_text())["teacher"] for run in (first, second, resumed)]
    assert [teacher["step"] for teacher in teachers] == [8, 1, 1]
    assert len({teacher["sha256"] for teacher in teachers}) == 2
    assert_same_tensors(*(tensors_of(run / "checkpoints" / "step-00000002") for run in (second, resumed)))
