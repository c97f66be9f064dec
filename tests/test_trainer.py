"""The trainer: exact resuming, gradients that do not depend on how a batch is split, and what stops a run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from toy import random_tokens, toy_model

import hybrid
from hybrid import checkpoint
from hybrid.config import load_config
from hybrid.data import PackedTokens
from hybrid.noise import Keys
from hybrid.objective import Count, Masking, Objective, Time
from hybrid.optim import OptimConfig, Optimizer, lr_factor
from hybrid.packing import Counts
from hybrid.run import Run
from hybrid.tracking import read_metrics
from hybrid.trainer import Share, Stepper, StepResult, TrainerConfig


def train(config: hybrid.Config) -> Path:
    run = Run(config)
    run.open()
    run.train()
    return run.folder


def tensors_of(step_folder: Path) -> dict[str, Tensor]:
    return {
        f"{file.stem}/{name}": tensor
        for file in sorted(step_folder.glob("*.safetensors"))
        for name, tensor in checkpoint.load_tensors(file).items()
    }


def assert_same_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def before_step(monkeypatch: pytest.MonkeyPatch, action) -> None:
    """Call action(step) before every optimizer step."""
    original = Stepper.__call__

    def call(self: Stepper, step: int) -> StepResult:
        action(step)
        return original(self, step)

    monkeypatch.setattr(Stepper, "__call__", call)


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


@pytest.mark.usefixtures("signals_that_nobody_catches_fail")
@pytest.mark.parametrize(
    "optimizer, others",
    [
        ("adamw", []),
        ("muon", []),
        ("muon", ["objective.proposal=adaptive", "objective.complementary=true", "objective.draws=2"]),
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
    assert checkpoint.step_of(checkpoint.find_checkpoint(parts)) == 6
    train(configure(tmp_path / "parts", *options, "trainer.resume=auto"))
    assert "resumed at step 6" in caplog.text

    last = [checkpoint.find_checkpoint(folder) for folder in (whole, parts)]
    assert [path.name for path in last] == ["step-00000008"] * 2
    a, b = map(tensors_of, last)
    assert {name.split("/")[0] for name in a} == {"model", "optimizer", "ema"} | ({"proposal"} if others else set())
    assert any(not torch.equal(t, a[f"model/{name[4:]}"]) for name, t in a.items() if name.startswith("ema/"))
    assert_same_tensors(a, b)
    assert checkpoint.read_state(last[0]) == checkpoint.read_state(last[1])
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
        Run(configure(copy_of_trained.parent, f"trainer.resume={other}")).open()


def test_a_run_that_was_killed_before_its_first_save_starts_over(configure: Configure, copy_of_trained: Path) -> None:
    shutil.rmtree(copy_of_trained / "checkpoints")
    lines = (copy_of_trained / "metrics.jsonl").read_text()
    train(configure(copy_of_trained.parent, "trainer.resume=auto"))
    assert checkpoint.step_of(checkpoint.find_checkpoint(copy_of_trained)) == 8
    steps = [record["step"] for record in read_metrics(copy_of_trained)]
    assert steps == sorted(steps) and steps.count(2) == 1
    assert (copy_of_trained / "metrics.jsonl.superseded").read_text() == lines


def test_a_folder_that_holds_something_is_not_overwritten(configure: Configure, copy_of_trained: Path) -> None:
    before = {path: path.read_bytes() for path in copy_of_trained.rglob("*") if path.is_file()}
    with pytest.raises(ValueError) as caught:
        Run(configure(copy_of_trained.parent)).open()
    for way_out in ("trainer.resume=auto", "run.name", "remove the folder", str(copy_of_trained)):
        assert way_out in str(caught.value)
    assert {path: path.read_bytes() for path in copy_of_trained.rglob("*") if path.is_file()} == before


def test_a_folder_of_other_things_is_not_taken_for_a_run(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty; choose another"):
        Run(configure(tmp_path, "trainer.resume=auto")).open()


@pytest.mark.parametrize(
    "changed",
    ["model.dim=32", "model.context=causal", "objective.block_size=8", "optim.ema_decay=0", "data.seq_len=16"],
)
def test_a_resumed_run_is_the_same_run(changed: str, configure: Configure, copy_of_trained: Path) -> None:
    key = changed.split("=")[0]
    with pytest.raises(ValueError, match=rf"^{key}: .*, but the run to resume has .*init_from$"):
        Run(configure(copy_of_trained.parent, "trainer.resume=auto", changed))


def test_what_belongs_to_the_machine_may_change(
    configure: Configure, copy_of_trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    harmless = ["eval.rows=2", f"data.cache_dir={tmp_path / 'cache'}", "decoder=confidence", "trainer.log_every=3"]
    run = Run(configure(copy_of_trained.parent, "trainer.resume=auto", *harmless))
    assert run.resume_from == copy_of_trained / "checkpoints" / "step-00000008"
    assert "not as if it had never stopped" not in caplog.text
    Run(configure(copy_of_trained.parent, "trainer.resume=auto", "trainer.steps=9"))
    assert "trainer.steps: 9 instead of 8: the run goes on, but not as if it had never stopped" in caplog.text


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
    step = checkpoint.step_of(checkpoint.find_checkpoint(tmp_path / "tiny"))
    assert step >= 4
    train(configure(tmp_path, *endless, f"trainer.steps={step + 2}", "trainer.resume=auto"))
    assert checkpoint.step_of(checkpoint.find_checkpoint(tmp_path / "tiny")) == step + 2


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
    step = checkpoint.step_of(checkpoint.find_checkpoint(tmp_path / "tiny"))
    assert step >= 3
    train(configure(tmp_path, *always, f"trainer.steps={step + 2}", "trainer.resume=auto"))
    assert checkpoint.step_of(checkpoint.find_checkpoint(tmp_path / "tiny")) == step + 2
    steps = [record["step"] for record in read_metrics(tmp_path / "tiny") if "optim/lr" in record]
    assert steps == list(range(1, step + 3))
    assert not [path for path in (tmp_path / "tiny" / "checkpoints").iterdir() if path.name.startswith(".")]


@pytest.mark.usefixtures("signals_that_nobody_catches_fail")
def test_a_signal_during_the_last_evaluation_loses_nothing(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(tmp_path, "trainer.eval_every=0", "trainer.save_every=0", "trainer.steps=2")

    def interrupted(self) -> dict[str, float]:
        assert checkpoint.step_of(checkpoint.find_checkpoint(tmp_path / "tiny")) == 2
        os.kill(os.getpid(), signal.SIGTERM)
        raise KeyboardInterrupt  # what a second signal does

    monkeypatch.setattr("hybrid.run.Validator.__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    assert checkpoint.step_of(checkpoint.find_checkpoint(tmp_path / "tiny")) == 2


# ---------------------------------------------------------------------------------------------------------------------
# The gradient does not depend on how the batch is split

SEQ_LEN, ROWS = 12, 8


def packed() -> PackedTokens:
    """Rows in which very different numbers of tokens count."""
    tokens = random_tokens(40, SEQ_LEN, seed=1).numpy().astype(np.uint16)
    share = np.linspace(0.05, 1, 40)[:, None]
    is_target = (np.random.default_rng(0).random(tokens.shape) < share).astype(np.uint8)
    n = int(is_target.sum())
    return PackedTokens(tokens.ravel(), is_target.ravel(), Counts(1, tokens.size, tokens.size, n, n), SEQ_LEN, 6)


def stepper(split: PackedTokens, draws: int = 2, estimator=None, **options) -> Stepper:
    model, optim = toy_model(), OptimConfig()
    trainer = TrainerConfig(batch_tokens=ROWS * SEQ_LEN, micro_batch_tokens=options.pop("micro", None))
    return Stepper(
        model, Optimizer(model, optim), None, split, Objective(estimator or Count(), draws=draws), [4, 3], optim,
        trainer, seed=0, precision=contextlib.nullcontext, **options,
    )  # fmt: skip


def gradient(one: Stepper, step: int = 3) -> tuple[Tensor, float]:
    """The gradient as one vector, and the loss."""
    one.optimizer.zero_grad()
    loss = one.accumulate(step).loss
    return torch.cat([p.grad.flatten() for p in one.model.parameters()]), loss


@pytest.mark.parametrize("estimator", [Count(), Time()])
def test_accumulation_gives_the_same_gradient(estimator) -> None:
    split = packed()
    expected, nelbo = gradient(stepper(split, estimator=estimator))
    assert expected.norm() > 0.1
    for micro_rows in (1, 2, 4):
        actual, accumulated = gradient(stepper(split, estimator=estimator, micro=micro_rows * SEQ_LEN))
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
        assert accumulated == pytest.approx(nelbo, rel=1e-12)


def test_a_proposal_learns_the_same_from_parts_of_a_batch() -> None:
    split, learned = packed(), []
    for micro_rows in (1, ROWS):
        one = stepper(split, estimator=Count("adaptive", complementary=True), micro=micro_rows * SEQ_LEN)
        for step in range(4):
            one(step)
        learned.append(one.objective.learner.state())
    assert learned[0].keys() == learned[1].keys() == {"moments.4", "moments.3"}
    for name, table in learned[0].items():
        torch.testing.assert_close(table, learned[1][name], rtol=1e-9, atol=1e-12)


def test_a_step_that_is_skipped_teaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    break_steps(monkeypatch, lambda step: step == 0, "gradient")
    one = stepper(packed(), estimator=Count("adaptive"))
    assert not one(0).is_finite and not one.objective.learner.state()
    assert one(1).is_finite and one.objective.learner.state()


@pytest.mark.parametrize(
    "options, trained, others",
    [
        (["objective.weighting=maskgit"], "train/loss", set()),
        (["objective.estimator=clipped"], "train/loss", set()),
        (["objective.proposal=adaptive"], "train/nelbo", set()),
        (["model.context=causal", "objective.ar_weight=0.5"], "train/nelbo", {"train/ar_nll"}),
    ],
)
def test_only_an_estimate_of_the_elbo_is_called_so(
    options: list[str], trained: str, others: set[str], configure: Configure, tmp_path: Path
) -> None:
    folder = train(configure(tmp_path, *options))
    tags = {tag for record in read_metrics(folder) for tag in record if tag.startswith("train/") and "/b" not in tag}
    assert tags == {trained} | others
    assert read_metrics(folder)[-1]["val/likelihood/b4"] == "bound"


@pytest.mark.parametrize("micro", [None, SEQ_LEN])
def test_the_gradients_of_two_ranks_sum_to_that_of_one_process(micro: int | None) -> None:
    split = packed()
    expected, nelbo = gradient(stepper(split))
    parts = [gradient(stepper(split, rank=rank, world=2, micro=micro)) for rank in (0, 1)]
    torch.testing.assert_close(parts[0][0] + parts[1][0], expected, rtol=1e-12, atol=1e-12)
    assert parts[0][1] + parts[1][1] == pytest.approx(nelbo, rel=1e-12)
    assert not torch.allclose(parts[0][0], parts[1][0])


@dataclasses.dataclass
class Spy:
    """Remembers the noise it hands out."""

    masks: list[Tensor] = dataclasses.field(default_factory=list)

    def draw(self, keys: Keys, is_target: Tensor, block_size: int, draws: int, stratified: bool) -> Masking:
        masking = Count().draw(keys, torch.ones_like(is_target), block_size, draws, stratified)
        self.masks.append(masking.masked)
        return masking


def test_ranks_see_other_data_and_other_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    split, read = packed(), []
    rows = PackedTokens.rows
    monkeypatch.setattr(PackedTokens, "rows", lambda self, index: read.append(list(index)) or rows(self, index))
    # Rank 0, rank 1, and one process; each counts the targets of the global batch first, then reads its share.
    noise = []
    for rank, world in ((0, 2), (1, 2), (0, 1)):
        spy = Spy()
        stepper(split, rank=rank, world=world, estimator=spy).accumulate(3)
        noise.append(torch.cat(spy.masks))
    batch, first, _, second, _, whole = read
    assert sorted(first + second) == sorted(batch) == sorted(whole) and not set(first) & set(second)
    assert torch.equal(torch.cat(noise[:2]), noise[2])
    assert not torch.equal(noise[0], noise[1])
    assert len({tuple(row.flatten().tolist()) for row in noise[2]}) == ROWS  # nor do two rows share theirs


def test_every_step_has_its_own_noise_and_data() -> None:
    split, spy = packed(), Spy()
    one = stepper(split, estimator=spy)
    one.block_sizes = [4]
    for step in range(3):
        one.accumulate(step)
    assert not torch.equal(spy.masks[0], spy.masks[1]) and not torch.equal(spy.masks[1], spy.masks[2])


def test_of_a_list_of_block_sizes_each_is_drawn_as_often() -> None:
    one = stepper(packed())
    drawn = [one.block_size_of(step) for step in range(2000)]
    # Binomial(2000, 1/2): six standard deviations, a false alarm in 5e8.
    assert abs(drawn.count(4) - 1000) < 6 * math.sqrt(500) and set(drawn) == {3, 4}
    assert drawn[:50] == [one.block_size_of(step) for step in range(50)]


# ---------------------------------------------------------------------------------------------------------------------
# Numbers that are not finite


def break_steps(monkeypatch: pytest.MonkeyPatch, bad, what: str) -> None:
    """Make the loss or the gradient NaN at the steps for which bad(step)."""
    original = Stepper.accumulate

    def accumulate(self: Stepper, step: int) -> Share:
        share = original(self, step)
        if bad(step) and what == "gradient":
            next(self.model.parameters()).grad.view(-1)[0] = math.inf
        return share._replace(loss=math.nan) if bad(step) and what == "loss" else share

    monkeypatch.setattr(Stepper, "accumulate", accumulate)


ALWAYS_SAVE = ["trainer.save_every=1", "trainer.keep_last=99", "trainer.eval_every=0", "trainer.log_every=1"]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(
    what: str, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    break_steps(monkeypatch, lambda step: step in (2, 3), what)
    folder = train(configure(tmp_path, *ALWAYS_SAVE, "trainer.max_bad_steps=3", "trainer.steps=6"))
    saved = [tensors_of(folder / "checkpoints" / f"step-{step:08d}") for step in range(1, 7)]
    assert_same_tensors(saved[1], saved[2])
    assert_same_tensors(saved[1], saved[3])
    assert not torch.equal(saved[3]["model/embedding.weight"], saved[4]["model/embedding.weight"])
    assert all(bool(tensor.isfinite().all()) for tensor in saved[5].values())
    counted = [record["optim/skipped_steps"] for record in read_metrics(folder) if "optim/skipped_steps" in record]
    assert counted == [0, 0, 1, 2, 2, 2]
    assert "step 2 skipped: loss" in caplog.text and "step 3 skipped" in caplog.text


def test_several_in_a_row_stop_the_run_with_a_diagnosis(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_steps(monkeypatch, lambda step: step >= 3, "loss")
    config = configure(tmp_path, *ALWAYS_SAVE, "trainer.max_bad_steps=3", "trainer.steps=50")
    with pytest.raises(ValueError) as caught:
        train(config)
    message = str(caught.value)
    for part in ("max_bad_steps: 3 steps in a row", "step 5", "learning rate", "weights are finite", "lower optim.lr"):
        assert part in message
    last = checkpoint.find_checkpoint(tmp_path / "tiny")
    assert_same_tensors(tensors_of(last), tensors_of(tmp_path / "tiny" / "checkpoints" / "step-00000003"))


def test_the_count_of_bad_steps_in_a_row_survives_resuming(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_steps(monkeypatch, lambda step: step >= 3, "loss")
    options = [*ALWAYS_SAVE, "trainer.max_bad_steps=3"]
    train(configure(tmp_path, *options, "trainer.steps=5"))
    with pytest.raises(ValueError, match=r"3 steps in a row.*\(step 5"):
        train(configure(tmp_path, *options, "trainer.steps=9", "trainer.resume=auto"))


def test_broken_weights_are_never_saved_over_good_ones(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update can break the weights although loss and gradient were finite."""
    step, count = Optimizer.step, iter(range(99))

    def overflow(self: Optimizer) -> None:
        step(self)
        if next(count) == 4:
            next(iter(self.names)).data[0] = math.inf

    monkeypatch.setattr(Optimizer, "step", overflow)
    with pytest.raises(
        ValueError,
        match=r"model head_weight.* not finite at step 5, which was not saved",
    ):
        train(configure(tmp_path, *ALWAYS_SAVE))
    last = checkpoint.find_checkpoint(tmp_path / "tiny")
    assert last.name == "step-00000004"
    assert all(bool(tensor.isfinite().all()) for tensor in tensors_of(last).values())


# ---------------------------------------------------------------------------------------------------------------------
# The time cap


def test_minutes_are_a_cap_and_schedules_count_steps(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = SimpleNamespace(now=0.0)
    fake = SimpleNamespace(monotonic=lambda: clock.now, perf_counter=time.perf_counter)
    monkeypatch.setattr("hybrid.trainer.time", fake)
    before_step(monkeypatch, lambda step: setattr(clock, "now", clock.now + 30))
    options = ["trainer.minutes=2", "trainer.steps=50", "trainer.eval_every=0", "trainer.save_every=0"]
    config = configure(tmp_path, *options, "trainer.log_every=1")
    folder = train(config)
    assert "trainer.minutes: stopped at step 4 of 50" in caplog.text
    assert checkpoint.step_of(checkpoint.find_checkpoint(folder)) == 4
    records = read_metrics(folder)
    assert "val/nelbo" in records[-1]
    rates = [record["optim/lr"] for record in records if "optim/lr" in record]
    assert rates == pytest.approx([0.01 * lr_factor(step, 50, config.optim) for step in range(4)])


# ---------------------------------------------------------------------------------------------------------------------
# Starting from the weights of another run


@pytest.mark.parametrize(
    "other", ["objective.block_size=8", "model.context=causal", "objective.estimator=time", "data.seq_len=64"]
)
def test_init_from_takes_the_averaged_weights(other: str, configure: Configure, trained: Path, tmp_path: Path) -> None:
    run = Run(configure(tmp_path, f"trainer.init_from={trained}", other))
    assert_same_tensors(dict(run.model.state_dict()), dict(hybrid.load(trained).model.state_dict()))
    averaged = checkpoint.load_tensors(checkpoint.find_checkpoint(trained) / "ema.safetensors")
    assert torch.equal(run.model.embedding.weight, averaged["embedding.weight"])


def test_init_from_begins_a_new_run(configure: Configure, trained: Path, tmp_path: Path) -> None:
    options = [
        f"trainer.init_from={trained}",
        "trainer.steps=2",
        "trainer.save_every=1",
        "objective.block_size=seq_len",
    ]
    folder = train(configure(tmp_path, *options))
    assert checkpoint.step_of(checkpoint.find_checkpoint(folder)) == 2
    after = hybrid.load(folder).model.embedding.weight
    assert not torch.equal(after, hybrid.load(trained).model.embedding.weight)
    # Resuming goes on from the run's own weights, not from those it was started with.
    resumed = Run(configure(tmp_path, *options, "trainer.resume=auto"))
    assert resumed.resume_from is not None
    assert not torch.equal(resumed.model.embedding.weight, hybrid.load(trained).model.embedding.weight)


@pytest.mark.parametrize(
    "other, message",
    [
        ("data.tokenizer=byte", r"^trainer\.init_from: .* has another vocabulary \(char, \d+ ids\) .*byte"),
        ("model.dim=32", "another architecture: of another shape"),
        ("model.n_layers=2", r"another architecture: missing layers\.1"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    other: str, message: str, configure: Configure, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Run(configure(tmp_path, f"trainer.init_from={trained}", other))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tiny").exists()


# ---------------------------------------------------------------------------------------------------------------------
# What a run writes down


def test_the_folder_of_a_run(trained: Path) -> None:
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "tokenizer/tokenizer_kind.json"):
        assert (trained / name).is_file(), name
    assert len(list(trained.glob("events.out.tfevents.*"))) == 1
    assert {path.name for path in (trained / "samples").iterdir()} == {"step-00000008.txt"}
    assert "'The '" in (trained / "samples" / "step-00000008.txt").read_text()
    config = load_config(trained / "config.yaml")
    assert config.trainer.steps == 8 and config.objective.block_size == [4, 1]
    facts = json.loads((trained / "environment.json").read_text())
    assert facts["parameters"] > 0 and facts["data"]["tokenizer"] == "char" and facts["libraries"]["torch"]
    checkpoints = trained / "checkpoints"
    assert {"latest", "best", "step-00000004", "step-00000008"} == {path.name for path in checkpoints.iterdir()}
    assert not list(trained.rglob("*.pt")) and not list(trained.rglob("*.pkl"))


TAGS = {
    "train/nelbo", "val/nelbo", "val/nelbo/b1", "val/nelbo/b4", "val/bits_per_byte", "val/perplexity",
    *(f"val_by_count/b4/n{n:03d}" for n in (1, 2, 3, 4)), "val_by_count/b1/n001",
    "optim/lr", "optim/grad_norm", "optim/skipped_steps", "perf/tokens_per_second", "gen/tokens_per_second",
    "gen/tokens_per_forward",
}  # fmt: skip


def test_metrics_and_tensorboard_hold_the_same(trained: Path) -> None:
    records = read_metrics(trained)
    by_tag: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for tag, value in record.items():
            if tag not in ("step", "time") and not isinstance(value, str):
                by_tag.setdefault(tag, []).append((record["step"], value))
    assert by_tag.keys() >= TAGS
    assert [step for step, _ in by_tag["train/nelbo"]] == [2, 4, 6, 8]
    assert [step for step, _ in by_tag["val/nelbo"]] == [4, 8]
    assert records[-1]["val/likelihood/b1"] == "exact" and records[-1]["val/likelihood/b4"] == "bound"
    assert records[-1]["val/nelbo"] == pytest.approx((records[-1]["val/nelbo/b1"] + records[-1]["val/nelbo/b4"]) / 2)
    assert records[-1]["val/stderr/b1"] == 0 and records[-1]["val/stderr/b4"] > 0

    events = EventAccumulator(str(trained), size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) >= TAGS | {"final/val/nelbo"}
    for tag, expected in by_tag.items():
        assert [(e.step, e.value) for e in events.Scalars(tag)] == [(s, pytest.approx(v)) for s, v in expected], tag
    assert {"attention_pattern"} <= set(tags["images"])
    assert {"config/text_summary", "samples/text_summary"} <= set(tags["tensors"])


def test_the_last_steps_are_recorded_although_no_record_is_due(configure: Configure, tmp_path: Path) -> None:
    folder = train(configure(tmp_path, "trainer.steps=3", "trainer.log_every=10"))
    assert [record["step"] for record in read_metrics(folder) if "train/nelbo" in record] == [3]


def test_each_block_size_of_a_list_is_trained_and_evaluated(configure: Configure, tmp_path: Path) -> None:
    options = [
        "objective.block_size=[2,seq_len]",
        "trainer.steps=12",
        "trainer.log_every=12",
        "eval.block_sizes=[1,2,16]",
    ]
    last = read_metrics(train(configure(tmp_path, *options)))[-2:]
    assert {"train/nelbo/b2", "train/nelbo/b32"} <= last[0].keys()
    assert {tag for tag in last[1] if tag.startswith("val/nelbo/")} == {"val/nelbo/b1", "val/nelbo/b2", "val/nelbo/b16"}
    assert "val_by_count/b16/n016" in last[1]


def test_only_the_last_and_the_best_checkpoint_are_kept(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = iter([3.0, 1.0, 2.0, 5.0])
    monkeypatch.setattr("hybrid.run.Validator.__call__", lambda self: {"val/nelbo": next(bounds)})
    options = ["trainer.eval_every=2", "trainer.save_every=2", "trainer.keep_last=1", "eval.sample_tokens=0"]
    checkpoints = train(configure(tmp_path, *options)) / "checkpoints"
    assert {path.name for path in checkpoints.glob("step-*")} == {"step-00000004", "step-00000008"}
    assert checkpoint.read_best(checkpoints) == (checkpoints / "step-00000004", 1.0)


def test_the_best_may_be_the_last(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = iter([3.0, 2.0])
    monkeypatch.setattr("hybrid.run.Validator.__call__", lambda self: {"val/nelbo": next(bounds)})
    checkpoints = train(configure(tmp_path, "trainer.keep_last=1", "eval.sample_tokens=0")) / "checkpoints"
    assert checkpoint.read_best(checkpoints) == (checkpoints / "step-00000008", 2.0)
    assert {path.name for path in checkpoints.glob("step-*")} == {"step-00000008"}


def test_evaluation_uses_the_averaged_weights_and_gives_the_others_back(configure: Configure, tmp_path: Path) -> None:
    looking = train(configure(tmp_path / "a", "trainer.eval_every=1", "trainer.sample_every=3"))
    blind = train(configure(tmp_path / "b", "trainer.eval_every=0"))
    a, b = (tensors_of(checkpoint.find_checkpoint(folder)) for folder in (looking, blind))
    assert_same_tensors(a, b)
    last = read_metrics(blind)[-1]
    lm = hybrid.load(blind)
    from hybrid.validation import bound

    data = Run(configure(tmp_path / "c")).data
    expected = bound(lm.model, data.validation, 4, rows=4, draws=2, precision=contextlib.nullcontext)
    assert last["val/nelbo/b4"] == pytest.approx(expected.nelbo, rel=1e-6)


def test_prompts_that_cannot_be_continued_are_left_out(
    configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = f"eval.sample_prompts=['ok', '\u00e9', '{'a' * 32}']"
    with caplog.at_level(logging.WARNING):
        folder = train(configure(tmp_path, prompts, "trainer.steps=2"))
    text = (folder / "samples" / "step-00000002.txt").read_text()
    assert text.count("---") == 1 and "'ok'" in text
    assert caplog.text.count("is left out") == 2
    none = train(configure(tmp_path / "none", "eval.sample_prompts=[]", "trainer.steps=2"))
    assert list((none / "samples").iterdir()) == []
