"""How far the runs of a sweep are: when one is finished, which folder is another run's, and the table of all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybrid.config import load_config
from hybrid.sweep.plan import Planned
from hybrid.sweep.state import State, state_of, table


def planned(folder: Path, *overrides: str) -> Planned:
    """The run of a folder as a sweep would ask for it."""
    own = [f"run.folder={folder.parent}", *overrides]
    return Planned(folder.name, load_config(folder / "config.yaml", own, checked=False), [])


def test_a_run_is_finished_when_its_last_validation_is_written(copy_of_trained: Path) -> None:
    """It comes after the last checkpoint: a run that was killed between the two has one to make."""
    metrics = copy_of_trained / "metrics.jsonl"
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    validations = [r for r in records if "val/nelbo" in r]
    assert [r["step"] for r in validations] == [4, 8]
    last, seconds = validations[-1], records[-1]["time"]
    assert state_of(planned(copy_of_trained)) == State(8, True, last["val/nelbo"], last["val/bits_per_byte"], seconds)
    assert state_of(planned(copy_of_trained, "trainer.steps=9")) == State(8, False, seconds=seconds)
    for wanted in (4, 0):  # up to the validation in the middle, and none at all
        kept = [r for r in records if "val/nelbo" not in r or r["step"] <= wanted]
        metrics.write_text("".join(json.dumps(r) + "\n" for r in kept))
        assert state_of(planned(copy_of_trained)) == State(8, False, seconds=kept[-1]["time"])
    metrics.unlink()
    assert state_of(planned(copy_of_trained)) == State(8, False)


def test_a_run_with_a_cap_of_minutes_is_finished_when_it_has_used_them(copy_of_trained: Path) -> None:
    minutes = json.loads((copy_of_trained / "metrics.jsonl").read_text().splitlines()[-1])["time"] / 60
    for share, is_finished in ((0.9, True), (1.1, False), (50, False)):
        run = planned(copy_of_trained, "trainer.steps=100", f"trainer.minutes={share * minutes}")
        assert state_of(run).is_finished is is_finished


def test_the_table_of_a_sweep() -> None:
    steps = {"a": 8, "b": 2000, "c": 8, "d": 8}
    runs = [Planned(name, load_config(None, [f"trainer.steps={n}"]), []) for name, n in steps.items()]
    states = {"a": State(8, True, 2.5, 3.25, 150.0), "b": State(1000, False, seconds=30.0), "c": State(0, False)}
    lines = table(runs, {**states, "d": State(4, False, seconds=6.0)}, {"d": "error: no"}).splitlines()
    assert [line.split() for line in lines[2:6]] == [
        ["a", "finished", "8", "2.5000", "3.2500", "2.5"], ["b", "stopped", "at", "1,000", "2,000", "-", "-", "0.5"],
        ["c", "new", "8", "-", "-", "-"], ["d", "FAILED", "8", "-", "-", "0.1"],
    ]  # fmt: skip
    assert lines[6:] == ["d: error: no"]


@pytest.mark.parametrize(
    "override, is_the_same",
    [
        ("run.seed=1", False), ("model.dim=32", False), ("data.seq_len=16", False), ("optim.lr=0.1", False),
        ("trainer.batch_tokens=256", False), ("trainer.precision=bf16", False), ("trainer.init_from=x", False),
        ("trainer.steps=12", True), ("trainer.minutes=5", True), ("trainer.log_every=1", True), ("eval.rows=2", True),
    ],
)  # fmt: skip
def test_a_folder_with_another_run_is_not_taken_for_the_one_that_is_planned(
    override: str, is_the_same: bool, copy_of_trained: Path
) -> None:
    if is_the_same:
        assert state_of(planned(copy_of_trained, override)).step == 8
        return
    key, _, value = override.partition("=")
    with pytest.raises(ValueError, match=rf"tiny: has {key} = .*, and the sweep wants '?{value}'?; choose another"):
        state_of(planned(copy_of_trained, override))
