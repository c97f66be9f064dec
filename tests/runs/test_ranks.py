"""Several processes train, evaluate and generate as one does; what they save is read by any number of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from training_toy import train

import hybrid
from hybrid.checkpoints import finding
from hybrid.checkpoints.tensor_files import load_group
from hybrid.distributed import ALONE, Ranks
from hybrid.likelihoods.rows import row_batches
from hybrid.objectives import OBJECTIVES
from hybrid.runs.run import Run
from hybrid.training.metrics import read_metrics

MODES = ("ddp", "fsdp")
# Everything that ranks have to agree on: noise of the whole batch, several forwards per step, averaged weights, an
# uneven number of validation rows and of prompts.
SETTINGS = (
    "objective.block_size=4", "objective.draws=2", "trainer.micro_batch_tokens=32",
    "model.n_layers=2", "eval.rows=5", "eval.sample_prompts=['','the ','by ']", "trainer.log_every=1",
)  # fmt: skip
TOLERANCE = 2e-5
"""Of float32 sums in another order, relative; another row or another mask changes the losses by percents."""


def start(n: int, script: str, *words: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """`script` in n processes that torchrun starts."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}", *launcher]
    target = [str(ROOT / script)] if script.endswith(".py") else ["-m", script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    return subprocess.Popen(
        [*command, *target, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out, err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


Trained = Callable[[str], Path]


@pytest.fixture(scope="module")
def trained_by(folder: Path, overrides) -> Trained:
    """trained_by("one" | "ddp" | "fsdp") -> the folder of a run of one process, or of two; each is trained once."""

    def make(mode: str) -> Path:
        path = folder / mode
        if not path.exists():
            words = [*overrides(folder), *SETTINGS, f"run.name={mode}"]
            if mode == "one":
                run = Run.of(hybrid.load_config(None, words))
                run.open()
                run.train()
            else:
                finish(start(2, "train.py", *words, f"trainer.parallel={mode}"))
        return path

    return make


def curves(run: Path) -> list[dict[str, float]]:
    """All that was recorded but times and text."""
    return [
        {tag: v for tag, v in record.items() if isinstance(v, float) and not tag.startswith(("perf", "gen", "time"))}
        for record in read_metrics(run)
    ]


def assert_same_curves(actual: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(actual) == len(expected)
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=TOLERANCE, abs=TOLERANCE, nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_train_as_one_process_does(mode: str, trained_by: Trained) -> None:
    one, two = trained_by("one"), trained_by(mode)
    assert len(curves(one)) >= 8
    assert_same_curves(curves(two), curves(one))
    (mine,), (theirs,) = (sorted((run / "samples").iterdir()) for run in (two, one))
    assert mine.read_text() == theirs.read_text()
    assert json.loads((two / "environment.json").read_text())["ranks"] == 2


@pytest.mark.slow
def test_two_ranks_learn_from_a_teacher_as_one_process_does(trained_by: Trained, overrides, tmp_path: Path) -> None:
    words = [*overrides(tmp_path), *SETTINGS, "run.imports=[user_distillation]", "objective.name=from_teacher"]
    words += [f"objective.teacher={trained_by('one')}", "run.seed=1", "trainer.steps=4"]
    for mode in MODES:
        finish(start(2, "train.py", *words, f"run.name={mode}", f"trainer.parallel={mode}"))
    try:
        train(hybrid.load_config(None, [*words, "run.name=one"]))
    finally:  # what the module has registered
        sys.modules.pop("user_distillation", None)
        OBJECTIVES.pop("from_teacher", None)
    one = curves(tmp_path / "one")
    assert one[0]["train/loss"] > 0.001
    for mode in MODES:
        assert_same_curves(curves(tmp_path / mode), one)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_what_two_ranks_saved_is_a_model_like_any_other(mode: str, trained_by: Trained) -> None:
    one, two = hybrid.load(trained_by("one")), hybrid.load(trained_by(mode))
    for (name, mine), theirs in zip(two.model.named_parameters(), one.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_each_rank_writes_its_part(trained_by: Trained) -> None:
    step = finding.find_checkpoint(trained_by("fsdp"))
    parts = sorted(step.glob("model.*"))
    assert [p.name for p in parts] == [f"model.0000{i}-of-00002.safetensors" for i in (0, 1)]
    whole = sum(p.stat().st_size for p in finding.find_checkpoint(trained_by("one")).glob("model.*"))
    assert all(0.3 * whole < part.stat().st_size < 0.75 * whole for part in parts)


@pytest.mark.slow
def test_a_missing_part_is_no_checkpoint(trained_by: Trained, tmp_path: Path) -> None:
    step = shutil.copytree(finding.find_checkpoint(trained_by("fsdp")), tmp_path / "step-00000008")
    (step / "model.00001-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"00001-of-00002\.safetensors: is missing"):
        finding.find_checkpoint(step)
    with pytest.raises(ValueError, match="1 of the 2 files of model are there"):
        load_group(step, "model")


@pytest.mark.slow
@pytest.mark.parametrize("before, after", [("one", "fsdp"), ("fsdp", "one"), ("fsdp", "ddp")])
def test_a_run_goes_on_with_another_number_of_ranks(
    before: str, after: str, trained_by: Trained, overrides, tmp_path: Path
) -> None:
    """From the checkpoint in the middle it comes to the end that it would have come to."""
    run = shutil.copytree(trained_by(before), tmp_path / "moved")
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    (run / "checkpoints" / "latest").write_text("step-00000004\n")
    words = [*overrides(tmp_path), *SETTINGS, "run.name=moved", "trainer.resume=auto"]
    if after == "one":
        again = Run.of(hybrid.load_config(None, words))
        again.open()
        again.train()
    else:
        _, err = finish(start(2, "train.py", *words, f"trainer.parallel={after}"))
        assert "resumed at step 4" in err
    assert_same_curves(curves(run), curves(trained_by("one")))


def rank_one_of(launcher: subprocess.Popen[str]) -> int:
    """The process of rank 1."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    (pid,) = [int(pid) for pid in children if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    return pid


def wait_for(found: Callable[[], bool]) -> None:
    for _ in range(600):
        if found():
            return
        time.sleep(0.1)
    raise AssertionError("it never came")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
@pytest.mark.slow
@pytest.mark.parametrize("restarts", [0, 3])
def test_a_rank_that_is_killed(restarts: int, overrides, tmp_path: Path) -> None:
    """The job ends with a message and its checkpoints; with --max-restarts it goes on by itself."""
    words = [*overrides(tmp_path), *SETTINGS, "trainer.steps=150", "trainer.save_every=10", "trainer.eval_every=0"]
    job = start(
        2, "train.py", *words, "trainer.resume=auto", "trainer.parallel=fsdp", launcher=(f"--max-restarts={restarts}",)
    )  # fmt: skip
    wait_for(lambda: (tmp_path / "tiny" / "checkpoints" / "latest").is_file())
    os.kill(rank_one_of(job), signal.SIGKILL)
    _, err = job.communicate(timeout=120)
    assert "error: rank 0 of 2: lost contact with the others" in err and "trainer.resume=auto" in err
    assert "Error" not in err[: err.index("error: rank 0 of 2")], "one line, no traceback of ours"
    last = finding.step_of(finding.find_checkpoint(tmp_path / "tiny"))
    assert last % 10 == 0 and last >= 10
    if restarts:
        assert job.returncode == 0 and "resumed at step" in err and last == 150
    else:
        assert job.returncode != 0 and last < 150


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_a_rank_that_is_told_to_stop_stops_all(overrides, tmp_path: Path) -> None:
    job = start(2, "train.py", *overrides(tmp_path), "trainer.steps=100000", "trainer.save_every=10")
    wait_for(lambda: (tmp_path / "tiny" / "checkpoints" / "latest").is_file())
    os.kill(rank_one_of(job), signal.SIGTERM)
    _, err = finish(job)
    assert "stopped by another rank at step" in err and "saved" in err


def numbers(line: dict) -> dict[str, float]:
    """All figures of a line of a table but its speed."""
    flat = {**line, **line.get("by_count", {})}
    return {k: v for k, v in flat.items() if isinstance(v, int | float) and k != "tokens_per_second"}


@pytest.mark.slow
def test_evaluation_and_generation_are_shared(trained_by: Trained, tmp_path: Path) -> None:
    run, files = trained_by("one"), [tmp_path / "1.json", tmp_path / "2.json"]
    words = ("--checkpoint", run, "--rows", 5, "--orders", "all", "--decoders", "margin", "--samples", 3)
    texts = ("--checkpoint", run, "--num-samples", 3, "--max-new-tokens", 9, "--prompt", "the ", "--json")
    jobs = [start(n, "hybrid.evaluate", *words, "--output", file) for n, file in zip((1, 2), files, strict=True)]
    shown = [finish(job)[0] for job in jobs]
    one, two = (json.loads(file.read_text()) for file in files)
    assert len(one["results"]) > 5
    for table in ("results", "generation"):
        for mine, theirs in zip(two[table], one[table], strict=True):
            assert numbers(mine) == pytest.approx(numbers(theirs), rel=TOLERANCE, abs=TOLERANCE, nan_ok=True)
    assert shown[1].count("bound") == shown[0].count("bound"), "only the first rank prints"
    alone, shared = (json.loads(finish(start(n, "generate.py", *texts))[0]) for n in (1, 2))
    assert shared["texts"] == alone["texts"] and len(set(alone["texts"])) == 3
    assert shared["tokens"] == alone["tokens"]


def test_a_batch_that_cannot_be_shared(configure, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer.batch_tokens: 128 are 4 rows .* 3 ranks .* try 96"):
        Run.of(configure(tmp_path), Ranks(0, 3))


@pytest.mark.parametrize("n_rows, world", [(5, 2), (4, 2), (1, 3), (7, 1)])
def test_rows_are_shared_without_rest(n_rows: int, world: int) -> None:
    """Each row counts once, and all ranks have as many forwards, without which a spread model would wait for ever."""
    by_rank = [list(row_batches(n_rows, 2, Ranks(rank, world))) for rank in range(world)]
    assert len({tuple(len(index) for index, _ in batches) for batches in by_rank}) == 1
    real = [i for batches in by_rank for index, is_real in batches for i, r in zip(index, is_real, strict=True) if r]
    assert sorted(real) == list(range(n_rows))


def test_one_process_asks_nobody() -> None:
    assert ALONE.is_main and ALONE.any(True) and not ALONE.any(False)
    assert ALONE.gather("a") == ["a"] and ALONE.interleave([1, 2, 3]) == [1, 2, 3]
    assert list(ALONE.share(3)) == [0, 1, 2]
