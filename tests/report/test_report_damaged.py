"""A report of runs of which one is damaged, or of another version: a page without it, and the reason."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from run_folders import Make, make_run  # noqa: F401 (a fixture)

from hybrid.report.__main__ import notes, seeds_of
from hybrid.report.groups import gather
from hybrid.report.run_record import RunRecord, find_runs, refuse_different_data

VALUES: list[Any] = [
    None, "x", "\ud800", 3, -1, 2.5, float("nan"), float("inf"), 10**400, True, [], {}, [1], [[]], {"step": "x"},
]  # fmt: skip
FILES = ("eval.json", "environment.json", "metrics.jsonl")


@pytest.fixture(scope="module")
def evaluated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs that were evaluated: `good`, and `bad`, which is for damaging."""
    import sys

    from hybrid import cli, evaluate

    folder = tmp_path_factory.mktemp("evaluated")
    good = shutil.copytree(trained, folder / "good")
    words = ["--rows", "2", "--draws", "2", "--decoders", "margin", "--samples", "2", "--new-tokens", "4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["", "--checkpoint", str(good), *words, "--judge", str(trained), "--device", "cpu"])
        patch.setattr(cli, "set_up_logging", lambda: None)
        assert cli.run(evaluate.main) == 0
    shutil.copytree(good, folder / "bad")
    shutil.rmtree(folder / "bad" / "checkpoints")  # else it is a copy of the other
    return folder


@pytest.fixture
def runs(evaluated: Path, tmp_path: Path) -> Path:
    return shutil.copytree(evaluated, tmp_path / "runs")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def damaged(value: Any, path: tuple[Any, ...], new: Any, delete: bool) -> Any:
    if not path:
        return new
    value = inner = copy.deepcopy(value)
    for key in path[:-1]:
        inner = inner[key]
    if delete:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return value


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_field_may_be_missing_or_of_another_kind(name: str, runs: Path) -> None:
    """Read as far as a report reads it, or refused in a line that names the file."""
    file, rng = runs / "bad" / name, random.Random(name)
    if name == "metrics.jsonl":  # its last line, which counts where there is no eval.json
        (runs / "bad" / "eval.json").unlink()
    *before, last = file.read_text().splitlines() if name == "metrics.jsonl" else [file.read_text()]
    good = json.loads(last)
    every = [(path, None, True) for path in places(good) if path]
    every += rng.sample([(path, new, False) for path in places(good) for new in VALUES], 40)
    refused = []
    for path, new, delete in every:
        text = json.dumps(damaged(good, path, new, delete))
        file.write_text("\n".join([*before, text, ""]))
        try:
            run = RunRecord.read(runs / "bad", "bad")
            run.sample, run.truth, run.own(), run.seconds, run.curve("val/nelbo")
            groups = gather([run])
            notes([run])
            seeds_of(groups)
        except ValueError as error:
            refused.append(str(error))
    assert all(str(runs / "bad") in message and len(message) < 1000 for message in refused), refused
    assert 10 < len(refused) < len(every)


@pytest.mark.thin(3)
@pytest.mark.parametrize(
    "name, content",
    [
        ("eval.json", "{}"), ("eval.json", "[]"), ("eval.json", "[" * 100_000), ("eval.json", '{"results": [3]}'),
        ("environment.json", "{}"), ("environment.json", ""), ("config.yaml", "model: [1]"), ("config.yaml", None),
        ("environment.json", None), ("metrics.jsonl", None), ("metrics.jsonl", '{"step": 3}\n'),
    ],
)  # fmt: skip
def test_a_damaged_run_is_left_out_with_a_reason(
    name: str, content: str | None, runs: Path, command: Command, tmp_path: Path
) -> None:
    file = runs / "bad" / name
    file.unlink() if content is None else file.write_text(content)
    done = command("report.__main__", runs, "--output", tmp_path / "report")
    assert done.code == 0, done.err
    page = (tmp_path / "report" / "index.html").read_text()
    assert all("Left out: " in text and str(file) in text for text in (done.err, page))
    alone = command("report.__main__", runs / "bad", "--output", tmp_path / "report").error
    assert str(file) in alone


@pytest.mark.thin(2)
@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_damaged_there_is_a_page_or_one_line(
    seed: int, runs: Path, command: Command, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    for name in FILES[:2]:
        good = json.loads((runs / "bad" / name).read_text())
        path = rng.choice([path for path in places(good) if path])
        (runs / "bad" / name).write_text(json.dumps(damaged(good, path, rng.choice(VALUES), rng.random() < 0.5)))
    done = command("report.__main__", runs, "--output", tmp_path / "report", "--force")
    assert done.code == 0 and (tmp_path / "report" / "index.html").is_file(), done.err


def test_what_is_beside_the_curves_may_be_missing(runs: Path, command: Command, tmp_path: Path) -> None:
    for part in ("tokenizer", "samples"):
        shutil.rmtree(runs / "bad" / part)
    (runs / "loop").symlink_to(runs)
    (runs / "bad" / "metrics.jsonl").write_text("")
    done = command("report.__main__", runs, "--output", tmp_path / "report")
    assert done.code == 0, done.err
    assert "its eval.json is of step 8, and the run is at step None" in done.err


# ---------------------------------------------------------------------------------------------------------------------
# Runs that are whole, and do not stand side by side


def test_copies_of_a_run_are_no_seeds(trained: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(trained, tmp_path / name)
    runs, left_out = find_runs([tmp_path])
    assert [run.name for run in runs] == ["a"]
    assert left_out == [f"Left out: {tmp_path / 'b'}: has the weights of a: a copy, or the same run once more"]
    shutil.rmtree(tmp_path / "b" / "checkpoints")
    runs, _ = find_runs([tmp_path])
    assert "a, b have the same seed: the error of" in seeds_of(gather(runs))[0]


def test_runs_of_one_name_are_told_apart_by_their_folders(make: Make, tmp_path: Path) -> None:
    make("x/b4", "run.name=same", nats=2.0)
    make("y/b4", "run.name=same", "run.seed=1", nats=2.2)
    runs, _ = find_runs([tmp_path / "runs"])
    assert [run.name for run in runs] == ["x/b4", "y/b4"]
    inner = make("z", nats=2.0)
    shutil.copytree(inner, inner / "inner")
    runs, _ = find_runs([inner, inner / "inner"])
    assert [run.name for run in runs] == ["z", "z/inner"]


def change(folder: Path, key: str, name: str, value: Any) -> None:
    content = json.loads((folder / "eval.json").read_text())
    content[key] = {**content[key], name: value}
    (folder / "eval.json").write_text(json.dumps(content))


def test_what_was_not_evaluated_alike_is_said(make: Make, tmp_path: Path) -> None:
    made = {"margin": (10.0, 1.0, 3.0)}
    a, b = (make(name, f"objective.draws={i}", decoders=made) for i, name in enumerate("ab", start=1))

    def said() -> str:
        return " ".join(notes(find_runs([a.parent])[0]))

    assert "alike" not in said() and "judges" not in said()
    change(b, "settings", "precision", "bf16")
    assert "hybrid.evaluate, 4 rows, 2 draws; hybrid.evaluate, 4 rows, 2 draws, bf16 on a processor" in said()
    change(b, "settings", "samples", 9)
    assert "Their texts were not made alike (samples differ), which can't be compared." in said()
    for folder, sha in ((a, "0" * 64), (b, "1" * 64)):
        change(folder, "judge", "checkpoint", {"step": 4, "sha256": sha})
    assert "different judges (runs/ar (step 4, sha256 000000000000...), runs/ar (step 4, sha256 1111" in said()
    change(b, "settings", "split", "train")
    with pytest.raises(ValueError, match=r"a and b have another split \(split: validation and train\)"):
        refuse_different_data(find_runs([a.parent])[0], force=False)


def test_an_evaluation_of_another_text_than_that_of_the_run_is_left_out(make: Make, tmp_path: Path) -> None:
    folder = make("a")
    content = json.loads((folder / "eval.json").read_text())
    content["data"]["corpus_sha256"] = "c1"
    content["settings"]["data"] = None
    (folder / "eval.json").write_text(json.dumps(content))
    ((run,), _) = find_runs([folder.parent])
    assert run.evaluation is None and "its eval.json is of another text than the run was trained on" in run.notes[0]
    content["settings"]["data"] = "other.txt"  # as it was asked to be
    (folder / "eval.json").write_text(json.dumps(content))
    ((run,), _) = find_runs([folder.parent])
    assert run.evaluation is not None and run.split == "all"


def test_figures_stand_beside_the_step_that_they_are_of(make: Make, tmp_path: Path) -> None:
    """The run has logged on behind its last checkpoint, and was evaluated there."""
    folder = make("a", sample="the last")
    content = json.loads((folder / "eval.json").read_text())
    content["checkpoint"] = {"step": 8, "sha256": "0" * 64}
    (folder / "eval.json").write_text(json.dumps(content))
    (folder / "samples" / "step-00000099.txt").write_text("of before it went back")
    ((run,), _) = find_runs([folder.parent])
    assert (run.step, run.seconds, run.tokens(run.step), run.sample) == (8, 16.0, 8 * 128, "the last")
    step = folder / "checkpoints" / "step-00000008"
    step.mkdir(parents=True)
    (step / "manifest.json").write_text('{"files": {}}')
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "time": 50.0, "train/nelbo": 1.0}\n')
    ((run,), _) = find_runs([folder.parent])
    assert run.evaluation is None and "another checkpoint of step 8" in run.notes[0]
    content["checkpoint"]["sha256"] = run.weights["sha256"]  # type: ignore[index]
    (folder / "eval.json").write_text(json.dumps(content))
    ((run,), _) = find_runs([folder.parent])
    assert (run.step, run.seconds, run.sample) == (8, 16.0, "the last")
