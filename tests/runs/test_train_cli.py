"""train.py as its user sees it: help, dry runs, and one line for everything that is wrong."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Command
from safetensors import SafetensorError

from hybrid.checkpoints import finding
from hybrid.config import load_config
from hybrid.config.schema import known_keys
from hybrid.decoding import DECODERS
from hybrid.model.attention import BACKENDS
from hybrid.objectives import ESTIMATORS, OBJECTIVES
from hybrid.objectives.proposals import PROPOSALS
from hybrid.objectives.schedules import SCHEDULES
from hybrid.objectives.weightings import WEIGHTINGS
from hybrid.training.step import Share

Overrides = Callable[[Path], list[str]]
HEAVY = ("datasets", "tensorboard", "matplotlib", "tokenizers", "pandas", "pyarrow")

# ---------------------------------------------------------------------------------------------------------------------
# Help


def test_help_lists_every_key_and_every_entry_of_the_tables(command: Command) -> None:
    done = command("train.py", "--help")
    assert done.code == 0 and done.err == ""
    words = done.out.split()
    assert "--dry-run" in done.out and "python train.py --config configs/quickstart.yaml" in done.out
    for name, key in known_keys().items():
        assert any(word.startswith(f"{name}=") for word in words), name
        assert key.doc.split()[0] in words
    for entry in (*DECODERS, *OBJECTIVES, *ESTIMATORS, *PROPOSALS, *WEIGHTINGS, *SCHEDULES, *BACKENDS):
        assert f"{entry}:" in words or entry in words, entry


@pytest.mark.parametrize("script", ["train.py", "generate.py"])
def test_help_is_quick(script: str, environment_of_a_child: dict[str, str]) -> None:
    code = (
        f"import runpy, sys\nsys.argv = [{script!r}, '--help']\n"
        f"try: runpy.run_path({str(ROOT / script)!r}, run_name='__main__')\n"
        f"except SystemExit as exit: print('exit', exit.code, [m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment_of_a_child, check=True
    )
    assert done.stdout.splitlines()[-1] in ("exit 0 []", "exit None []")


# ---------------------------------------------------------------------------------------------------------------------
# What it does


def test_a_run_from_a_file_with_overrides(command: Command, overrides: Overrides, tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text("trainer: {steps: 50}\nrun: {seed: 3}\n")
    words = [word for word in overrides(tmp_path) if not word.startswith("run.name=")]
    done = command("train.py", "--config", config, *words, "trainer.steps=2")
    assert done.code == 0, done.err
    assert done.out == ""
    assert finding.step_of(finding.find_checkpoint(tmp_path / "small")) == 2
    assert load_config(tmp_path / "small" / "config.yaml").run.seed == 3
    for text in ("2 steps of 128 tokens", "block size 4:", "block size 1:", "nats per token", "parameters"):
        assert text in done.err
    told = f"python generate.py --checkpoint {tmp_path}/small; see its curves: tensorboard --logdir {tmp_path}"
    assert done.err.splitlines()[-1] == f"write text: {told}"


def test_a_dry_run_checks_everything_and_writes_nothing(command: Command, overrides: Overrides, tmp_path: Path) -> None:
    done = command("train.py", *overrides(tmp_path), "--dry-run")
    assert done.code == 0
    assert "parameters" in done.out and "training tokens" in done.out and "blocks   4, 1 of 32 tokens" in done.out
    assert not (tmp_path / "tiny").exists()


def test_the_printed_configuration_is_a_configuration(command: Command, overrides: Overrides, tmp_path: Path) -> None:
    done = command("train.py", *overrides(tmp_path), "--print-config", "optim.lr=0.5", "decoder.name=margin")
    assert done.code == 0
    (tmp_path / "again.yaml").write_text(done.out)
    again = load_config(tmp_path / "again.yaml")
    assert again == load_config(None, [*overrides(tmp_path), "optim.lr=0.5", "decoder.name=margin"])
    assert not (tmp_path / "tiny").exists()


def test_an_ignored_setting_is_a_warning(command: Command, overrides: Overrides, tmp_path: Path) -> None:
    done = command("train.py", *overrides(tmp_path), "--print-config", "optim.muon_lr=0.5")
    assert done.code == 0
    assert "warning: optim.muon_lr = 0.5 is ignored: optim.name is not muon" in done.err.splitlines()


# ---------------------------------------------------------------------------------------------------------------------
# Bad input

BAD = [
    ("--steps 60", r"unrecognized arguments: --steps 60 .did you mean trainer.steps=60\?"),
    ("--trainer.steps=60", r"did you mean trainer.steps=60\?"),
    ("--dryrun", r"did you mean --dry-run\?"),
    ("trainer.stepps=3", "trainer.stepps: unknown key .value 3.; .*did you mean 'trainer.steps'"),
    ("nonsense.key=3", "unknown group 'nonsense'"),
    ("trainer.steps", "'trainer.steps' is not key=value"),
    ("trainer.steps=many", "trainer.steps: 'many'"),
    ("decoder=first_hiting", "decoder: 'first_hiting' is not one of .*did you mean 'first_hitting'"),
    ("decoder.stepz=3", "decoder.*stepz"),
    ("objective.estimator=nope", "objective.estimator: 'nope' is not one of"),
    ("objective.block_size=0", "objective.block_size: 0 is too small; a block has from 1 to 32"),
    ("objective.block_size=-4", "objective.block_size: -4 is too small"),
    ("objective.block_size=33", "objective.block_size: 33 is larger than data.seq_len = 32"),
    ("objective.block_size=[1,64]", "objective.block_size: 64 is larger"),
    ("objective.block_size=[]", r"objective.block_size: \[\] is empty"),
    ("objective.block_size=eight", "objective.block_size: 'eight' is not a block size"),
    ("objective.block_size=2.5", "objective.block_size: 2.5 is not a block size"),
    ("trainer.batch_tokens=100", "trainer.batch_tokens: 100 is not a whole number of rows .*try 96 or 128"),
    ("trainer.micro_batch_tokens=96", "trainer.micro_batch_tokens: 96 does not divide trainer.batch_tokens = 128"),
    ("model.n_heads=3", "model.n_heads: 3 does not divide"),
    ("optim.lr=.nan", "optim.lr: nan is not a finite number"),
    ("run.device=toaster", "run.device: 'toaster' is not a device"),
    ("run.name=../elsewhere", "run.name: '../elsewhere' does not name a folder"),
    ("run.imports=[no_such_module_here]", "run.imports: cannot import 'no_such_module_here'"),
    ("trainer.init_from=no/such/run", "checkpoint: no/such/run does not exist"),
    ("trainer.resume=no/such/run", "checkpoint: no/such/run does not exist"),
    ("data.corpus=no/such/corpus.txt", "data.corpus: 'no/such/corpus.txt': no such file"),
    ("data.corpus=pydoc", "data.corpus: 'pydoc' is not one of .*did you mean 'pydocs'"),
    ("data.tokenizer=bytes", "data.tokenizer: 'bytes' is not one of .*did you mean 'byte'"),
    ("data.seq_len=100000", "trainer.batch_tokens: 128 is not a whole number of rows of data.seq_len = 100000"),
]


@pytest.mark.parametrize("override, message", BAD, ids=[override for override, _ in BAD])
def test_a_wrong_setting_is_one_line(
    override: str, message: str, command: Command, overrides: Overrides, tmp_path: Path
) -> None:
    error = command("train.py", *overrides(tmp_path), *override.split()).error
    assert re.search(message, error), error
    assert not (tmp_path / "tiny").exists()


def test_a_config_file_that_is_not_there_or_no_yaml(command: Command, tmp_path: Path) -> None:
    assert "missing.yaml" in command("train.py", "--config", tmp_path / "missing.yaml").error
    (tmp_path / "broken.yaml").write_text("trainer: {steps: 3\n")
    assert "broken.yaml" in command("train.py", "--config", tmp_path / "broken.yaml").error
    (tmp_path / "key.yaml").write_text("trainer: {stepss: 3}\n")
    error = command("train.py", "--config", tmp_path / "key.yaml").error
    assert "key.yaml: trainer.stepss: unknown key" in error and "did you mean 'trainer.steps'" in error


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "data.corpus.*(empty|holds)"),
        (b"too short", "data.(corpus|seq_len)"),
        (b"caf\xe9 " * 2000, "not UTF-8"),
    ],
    ids=["empty", "shorter than a row", "not UTF-8"],
)
def test_a_corpus_that_cannot_be_used(
    content: bytes, message: str, command: Command, overrides: Overrides, tmp_path: Path
) -> None:
    (tmp_path / "corpus.txt").write_bytes(content)
    error = command("train.py", *overrides(tmp_path), f"data.corpus={tmp_path / 'corpus.txt'}").error
    assert re.search(message, error), error
    assert not (tmp_path / "tiny").exists()


def test_a_corpus_shorter_than_a_row(command: Command, overrides: Overrides, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{number}.txt").write_text(f"the value {number}")
    words = ["data.seq_len=4096", "trainer.batch_tokens=4096", f"data.corpus={tmp_path / 'texts'}"]
    error = command("train.py", *overrides(tmp_path), *words).error
    assert "data.seq_len: 4096 is more than the" in error and "tokens of the" in error


def test_a_folder_that_is_not_empty_names_the_ways_out(
    command: Command, overrides: Overrides, copy_of_trained: Path
) -> None:
    error = command("train.py", *overrides(copy_of_trained.parent)).error
    assert "go on with trainer.resume=auto, choose another run.name, or remove the folder" in error


def test_resuming_as_another_model_names_the_key(command: Command, overrides: Overrides, copy_of_trained: Path) -> None:
    error = command("train.py", *overrides(copy_of_trained.parent), "trainer.resume=auto", "model.dim=32").error
    assert error.startswith("error: model.dim: 32, but the run to resume has 16; set it back")


# ---------------------------------------------------------------------------------------------------------------------
# Damaged checkpoints and full disks


def go_on(command: Command, overrides: Overrides, folder: Path, *more: str):
    return command("train.py", *overrides(folder.parent), "trainer.resume=auto", "trainer.steps=9", *more)


@pytest.mark.thin(1)
@pytest.mark.parametrize("content", ["", "\x00\x00 rubbish", "step-00000099\n"])
def test_a_corrupt_latest_falls_back_and_says_so(
    content: str, command: Command, overrides: Overrides, copy_of_trained: Path
) -> None:
    (copy_of_trained / "checkpoints" / "latest").write_text(content)
    done = go_on(command, overrides, copy_of_trained)
    assert done.code == 0, done.err
    assert "warning: " in done.err and "using step 8" in done.err
    assert "resumed at step 8" in done.err
    assert (copy_of_trained / "checkpoints" / "latest").read_text() == "step-00000009\n"


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def test_a_truncated_checkpoint_falls_back_to_the_one_before(
    command: Command, overrides: Overrides, copy_of_trained: Path
) -> None:
    truncate(copy_of_trained / "checkpoints" / "step-00000008" / "model.safetensors")
    done = go_on(command, overrides, copy_of_trained)
    assert done.code == 0, done.err
    assert "(truncated?)" in done.err and "using step 4" in done.err and "resumed at step 4" in done.err


def test_when_all_checkpoints_are_damaged(command: Command, overrides: Overrides, copy_of_trained: Path) -> None:
    for step in (4, 8):
        truncate(copy_of_trained / "checkpoints" / f"step-{step:08d}" / "optimizer.safetensors")
    assert "none in" in go_on(command, overrides, copy_of_trained).error


def test_a_checkpoint_without_optimizer(command: Command, overrides: Overrides, copy_of_trained: Path) -> None:
    """As if it had been saved without: complete by its manifest, and of no use for resuming."""
    from hybrid.storage.folders import new_folder

    step = copy_of_trained / "checkpoints" / "step-00000008"
    with new_folder(step, overwrite=True) as folder:
        for name in ("model.safetensors", "state.json", "ema.safetensors"):
            shutil.copy(step / name, folder / name)
    done = go_on(command, overrides, copy_of_trained)
    assert done.code == 2 and "optimizer.safetensors: is missing" in done.err and "Traceback" not in done.err


@pytest.mark.thin(1)
@pytest.mark.parametrize(
    "full",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["OSError", "SafetensorError"],
)
def test_a_full_disk_loses_nothing(
    full: Exception, command: Command, overrides: Overrides, copy_of_trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_file(tensors, file: Path) -> None:
        file.write_bytes(b"half of it")
        raise full

    before = finding.find_checkpoint(copy_of_trained)
    with monkeypatch.context() as patch:
        patch.setattr("hybrid.checkpoints.tensor_files.save_file", save_file)
        done = go_on(command, overrides, copy_of_trained)
    assert done.code == 2 and "Traceback" not in done.err
    assert done.err.splitlines()[-1].startswith("error: ")
    assert "No space left on device; what was saved before is unchanged; free some space and resume" in done.err
    assert finding.find_checkpoint(copy_of_trained) == before
    assert not [path for path in (copy_of_trained / "checkpoints").iterdir() if path.name.startswith(".")]
    assert go_on(command, overrides, copy_of_trained).code == 0


def test_another_vocabulary_or_architecture_is_one_line(
    command: Command, overrides: Overrides, trained: Path, tmp_path: Path
) -> None:
    words = [*overrides(tmp_path), f"trainer.init_from={trained}"]
    assert "has another vocabulary (char" in command("train.py", *words, "data.tokenizer=byte").error
    assert "another architecture" in command("train.py", *words, "model.dim=32").error


def test_a_diverged_run_is_one_line(
    command: Command, overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = Share(torch.full((2,), torch.nan), 4, [])
    monkeypatch.setattr("hybrid.training.step.Stepper.accumulate", lambda self, step: nothing)
    done = command("train.py", *overrides(tmp_path), "trainer.max_bad_steps=2")
    assert done.code == 2 and "Traceback" not in done.err
    assert done.err.splitlines()[-1].startswith("error: trainer.max_bad_steps: 2 steps in a row")


def test_in_a_process_of_its_own(overrides: Overrides, tmp_path: Path, environment_of_a_child: dict[str, str]) -> None:
    """The real exit code and streams."""
    words = [sys.executable, str(ROOT / "train.py"), *overrides(tmp_path), "objective.block_size=0"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment_of_a_child)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: objective.block_size: 0 is too small") and done.stderr.count("\n") == 1
