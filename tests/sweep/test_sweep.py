"""Sweeps: which runs a grid has, what they are called, and what becomes of them when they are started again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, Command, Configure

from hybrid.checkpoints.finding import list_checkpoints
from hybrid.config import load_config, to_yaml
from hybrid.sweep.plan import Plan, axis, plan, run_name
from hybrid.sweep.state import state_of

SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))


@pytest.fixture
def base(tmp_path: Path, configure: Configure) -> Path:
    """The configuration of a run that takes a second."""
    path = tmp_path / "base.yaml"
    path.write_text(to_yaml(configure(tmp_path, "objective.block_size=4", "eval.sample_tokens=0")))
    return path


def sweep(base: Path, text: str) -> Path:
    path = base.with_name("sweep.yaml")
    path.write_text(f"config: {base.name}\n{text}\n")
    return path


def names(found: Plan) -> list[str]:
    return [run.name for run in found.runs]


# ---------------------------------------------------------------------------------------------------------------------
# What is planned


def test_values_of_an_axis_are_those_of_a_yaml_list() -> None:
    assert axis("objective.block_size=1,4,[8, 1]") == ("objective.block_size", [1, 4, [8, 1]])
    assert axis("objective.proposal=uniform,{name: power, exponent: 0.5}")[1] == [
        "uniform", {"name": "power", "exponent": 0.5},
    ]  # fmt: skip
    assert axis("optim.lr=1e-3") == ("optim.lr", [1e-3])
    with pytest.raises(ValueError, match="'steps' is not key=value"):
        axis("steps")


def test_a_name_tells_a_run_from_the_others() -> None:
    assert run_name("b4", {"run.seed": 1}) == "b4-seed-1"
    assert run_name("", {"objective.block_size": [8, 1]}) == "block_size-8-1"
    assert (
        run_name("", {"objective.proposal": {"name": "power", "exponent": 0.5}}) == "proposal-name-power-exponent-0.5"
    )
    assert run_name("", {"model.steps": 1, "trainer.steps": 2}) == "model.steps-1-trainer.steps-2"
    assert run_name("", {}) == "run"


def test_every_combination_with_all_arms_of_a_seed_first(base: Path, tmp_path: Path) -> None:
    file = sweep(base, "arms: {a: {model.dim: 8}, b: {model.dim: 32}}\ngrid: {run.seed: [0, 1]}")
    found = plan(file, ["objective.draws=1,2"], tmp_path / "out")
    expected = [f"{arm}-seed-{s}-draws-{d}" for s in (0, 1) for d in (1, 2) for arm in "ab"]
    assert names(found) == expected
    last = found.runs[-1].config
    assert (last.model.dim, last.run.seed, last.objective.draws) == (32, 1, 2)
    assert (last.run.name, last.run.folder, last.trainer.resume) == (expected[-1], str(tmp_path / "out"), "auto")


def test_the_command_line_is_over_the_file(base: Path, tmp_path: Path) -> None:
    file = sweep(base, "set: {trainer.steps: 4}\ngrid: {run.seed: [0, 1], objective.block_size: [1, 2]}")
    assert [run.config.trainer.steps for run in plan(file, [], tmp_path).runs] == [4] * 4
    found = plan(file, ["trainer.steps=6", "run.seed=7"], tmp_path)
    assert names(found) == ["block_size-1", "block_size-2"]
    assert {(run.config.trainer.steps, run.config.run.seed) for run in found.runs} == {(6, 7)}


def test_an_arm_is_over_what_all_runs_have_and_the_grid_and_the_command_line_over_both(
    base: Path, tmp_path: Path
) -> None:
    text = "set: {model.dim: 8, trainer.steps: 4}\narms: {a: {model.dim: 32, trainer.steps: 6}, b: {}}"

    def sizes(*overrides: str, grid: str = "") -> list[tuple[str, int, int]]:
        runs = plan(sweep(base, f"{text}\n{grid}"), overrides, tmp_path).runs
        return [(run.name, run.config.model.dim, run.config.trainer.steps) for run in runs]

    assert sizes() == [("a", 32, 6), ("b", 8, 4)]
    assert sizes(grid="grid: {model.dim: [16]}") == [("a-dim-16", 16, 6), ("b-dim-16", 16, 4)]
    assert sizes("trainer.steps=9") == [("a", 32, 9), ("b", 8, 9)]
    assert sizes("model.dim=8,16")[::2] == [("a-dim-8", 8, 6), ("a-dim-16", 16, 6)]


def test_the_configuration_of_a_run_is_a_sweep_of_what_the_command_line_says(base: Path, tmp_path: Path) -> None:
    assert names(plan(base, ["objective.block_size=1,4", "run.seed=0,1"], tmp_path)) == [
        "block_size-1-seed-0", "block_size-1-seed-1", "block_size-4-seed-0", "block_size-4-seed-1",
    ]  # fmt: skip
    assert names(plan(base, [], tmp_path)) == ["run"]


@pytest.mark.parametrize(
    "text, overrides, message",
    [
        ("arm: {}\ngrid: {}", [], r"unknown key 'arm'; a sweep has .* \(did you mean 'arms'\?\)"),
        ("grid: [1]", [], r"grid: \[1\] is not a mapping"),
        ("arms: {a: 3}", [], r"arms\.a: 3 is not a mapping of keys"),
        ("grid: {run.seed: 3}", [], r"grid\.run\.seed: 3 is not a list of values"),
        ("grid: {run.seed: []}", [], r"grid\.run\.seed: \[\] is not a list of values"),
        ("grid: {run.seed: [0, 0]}", [], "two runs would be named 'seed-0'"),
        ("grid: {run.folder: [a, b]}", [], r"run\.folder: a sweep sets it for each run"),
        ("grid: {}", ["run.name=mine"], r"run\.name: a sweep sets it for each run"),
        ("arms: {a: {run.folder: x}}", [], r"run\.folder: a sweep sets it for each run"),
        ("set: {trainer.resume: never}\ngrid: {}", [], r"trainer\.resume: a sweep sets it for each run"),
        ("grid: {run.sed: [0, 1]}", [], r"run sed-0: run\.sed: unknown key"),
        ("grid: {}", ["objective.block_size=4,64"], "run block_size-64: .*64"),
        ("grid: {}\nevaluate: {rowss: 3}", [], "--rowss"),
        ("grid: {}\nevaluate: {checkpoint: x}", [], r"evaluate\.checkpoint: a sweep sets it"),
    ],
)
def test_what_is_refused(text: str, overrides: list[str], message: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        plan(sweep(base, text), overrides, tmp_path)


def test_a_sweep_names_the_configuration_of_its_runs(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("grid: {run.seed: [0]}")
    with pytest.raises(ValueError, match=r"sweep\.yaml: config: missing"):
        plan(path, [], tmp_path)


def test_training_a_sweep_is_refused_with_the_right_command(command: Command) -> None:
    done = command("train.py", "--config", SWEEPS[0])
    assert f"start it with python -m hybrid.sweep --config {SWEEPS[0]}" in done.error


def test_options_of_the_evaluation_and_a_judge_of_the_sweep(base: Path, tmp_path: Path) -> None:
    text = (
        "grid: {run.seed: [0]}\nevaluate: {block_size: [1, 4], rows: 8, enumerate: true, decoders: [margin], judge: a}"
    )
    words = plan(sweep(base, text), [], tmp_path).evaluate
    assert words == [
        "--block-size", "1", "4", "--rows", "8", "--enumerate", "--decoders", "margin", "--judge", str(tmp_path / "a"),
    ]  # fmt: skip


@pytest.mark.thin(3)
@pytest.mark.parametrize("file", SWEEPS, ids=lambda path: path.stem)
def test_the_sweeps_that_ship(file: Path, tmp_path: Path) -> None:
    found = plan(file, [], tmp_path)
    assert len(found.runs) > 3 and found.evaluate is not None
    text = file.read_text()
    assert f"python -m hybrid.sweep --config configs/sweeps/{file.name}" in text
    if "--judge" in found.evaluate:
        assert Path(found.evaluate[found.evaluate.index("--judge") + 1]).name in names(found)


# ---------------------------------------------------------------------------------------------------------------------
# What becomes of the runs


@pytest.mark.slow
def test_the_command_line(command: Command, base: Path, tmp_path: Path) -> None:
    """Two runs, one of which fails: the other is trained and evaluated, and neither is trained again."""
    file = sweep(base, "arms: {good: {}, bad: {optim.lr: 1e30, optim.grad_clip: 0}}\nevaluate: {rows: 4, draws: 1}")
    folder = tmp_path / "runs"
    words = ["--config", file, "--folder", folder, "--jobs", 2, "trainer.max_bad_steps=1"]
    dry = command("sweep.__main__", *words, "--dry-run")
    assert dry.code == 0 and not folder.exists()
    assert [line.split()[:3] for line in dry.out.splitlines()[2:]] == [["good", "new", "8"], ["bad", "new", "8"]]

    done = command("sweep.__main__", *words)
    assert done.code == 1, done.err
    good, bad, why = done.out.splitlines()[2:]
    assert good.split()[:3] == ["good", "finished", "8"] and bad.split()[:2] == ["bad", "FAILED"]
    assert why.startswith("bad: error: trainer.max_bad_steps: 1 steps in a row")
    assert json.loads((folder / "good" / "eval.json").read_text())["settings"]["rows"] == 4
    assert not (folder / "bad" / "eval.json").exists()
    last = json.loads((folder / "good" / "metrics.jsonl").read_text().splitlines()[-1])
    assert good.split()[3] == f"{last['val/nelbo']:.4f}"

    before = {path: path.stat().st_mtime_ns for path in (folder / "good").rglob("*") if path.is_file()}
    again = command("sweep.__main__", *words)
    assert again.code == 1 and "good: finished already" in again.err
    assert {path: path.stat().st_mtime_ns for path in before} == before

    other = command("sweep.__main__", *words, "model.dim=32")
    assert "has model.dim = 16, and the sweep wants 32; choose another --folder" in other.error


def test_a_bad_configuration_is_one_line_before_anything_starts(command: Command, base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    done = command("sweep.__main__", "--config", base, "--folder", folder, "objective.block_size=4,0")
    assert done.error.startswith("error: run block_size-0: objective.block_size")
    assert "--jobs: 0 is too small" in command("sweep.__main__", "--config", base, "--jobs", 0).error
    assert not folder.exists()


@pytest.mark.slow
def test_a_sweep_that_is_interrupted_goes_on(
    base: Path, tmp_path: Path, environment_of_a_child: dict[str, str]
) -> None:
    """The signal reaches the sweep alone, as a scheduler sends it: the run saves, and the next sweep resumes it."""
    folder = tmp_path / "runs"
    words = ["--config", str(base), "--folder", str(folder), "trainer.steps=4000", "trainer.save_every=0"]
    words += ["trainer.eval_every=0", "trainer.log_every=10"]
    command = [sys.executable, "-m", "hybrid.sweep", *words]
    process = subprocess.Popen(command, cwd=ROOT, env=environment_of_a_child, stderr=subprocess.PIPE, text=True)
    metrics = folder / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "run: is asked to stop" in err, err
    stopped = state_of(plan(base, words[4:], folder).runs[0])
    assert 0 < stopped.step < 4000 and not stopped.is_finished
    assert len(list_checkpoints(folder / "run" / "checkpoints")) == 1

    steps = stopped.step + 20
    words[4] = f"trainer.steps={steps}"
    done = subprocess.run(
        [sys.executable, "-m", "hybrid.sweep", *words],
        cwd=ROOT,
        env=environment_of_a_child,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert state_of(plan(base, words[4:], folder).runs[0]).is_finished
    logged = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert logged == sorted(logged) and logged[-1] == steps


def test_a_run_that_reached_its_time_is_finished(base: Path, tmp_path: Path, configure: Configure) -> None:
    from training_toy import train

    words = ["trainer.minutes=0.002", "trainer.steps=100000", "trainer.save_every=0", "trainer.eval_every=0"]
    folder = tmp_path / "runs"
    (run,) = plan(base, words, folder).runs
    assert not state_of(run).is_finished
    train(run.config)
    state = state_of(run)
    assert state.is_finished and 0 < state.step < 100000 and state.nelbo is not None
    longer = plan(base, [*words, "trainer.minutes=60"], folder).runs[0]
    assert not state_of(longer).is_finished


def test_the_written_configuration_is_that_of_the_run(base: Path, tmp_path: Path) -> None:
    """What the sweep hands to train.py: values that YAML could take for something else arrive as they are."""
    (run,) = plan(base, ["eval.sample_prompts=['a, b', 'null', '[1]', '007']"], tmp_path).runs
    path = tmp_path / "handed.yaml"
    path.write_text(to_yaml(run.config))
    assert load_config(path) == run.config
    assert run.config.eval.sample_prompts == ["a, b", "null", "[1]", "007"]
