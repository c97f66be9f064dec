"""The training loop: what stops a run, and what it writes down."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import Configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_toy import ALWAYS_SAVE, assert_same_tensors, before_step, break_steps, tensors_of, train

import hybrid
from hybrid.checkpoints import finding
from hybrid.config import load_config
from hybrid.runs.run import Run
from hybrid.training.metrics import read_metrics
from hybrid.training.optim import Optimizer, lr_factor


@pytest.mark.thin(2)
@pytest.mark.parametrize(
    "options, trained, others",
    [
        (["objective.weighting=maskgit"], "train/loss", set()),
        (["objective.estimator=clipped"], "train/loss", set()),
        (["objective.proposal={name: power, exponent: 0.5}"], "train/nelbo", set()),
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


# ---------------------------------------------------------------------------------------------------------------------
# Numbers that are not finite


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
    last = finding.find_checkpoint(tmp_path / "tiny")
    assert_same_tensors(tensors_of(last), tensors_of(tmp_path / "tiny" / "checkpoints" / "step-00000003"))


@pytest.mark.parametrize("when", ["trainer.log_every=4", "trainer.save_every=4"])
def test_bad_steps_are_counted_when_the_run_logs_or_saves(
    when: str, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not before, since that would wait for the device; they have their own numbers nevertheless."""
    break_steps(monkeypatch, lambda step: step in (1, 2), "loss")
    steps: list[int] = []
    before_step(monkeypatch, steps.append)
    never = ["trainer.eval_every=0", "trainer.save_every=0", "trainer.log_every=99"]
    config = configure(tmp_path, *never, "trainer.max_bad_steps=2", when)
    with pytest.raises(ValueError, match=r"2 steps in a row .*\(step 2, .*; the weights are finite\)"):
        train(config)
    assert steps == [0, 1, 2, 3]
    assert "step 1 skipped" in caplog.text and "step 2 skipped" in caplog.text
    assert not finding.list_checkpoints(tmp_path / "tiny" / "checkpoints")


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

    def overflow(self: Optimizer, skip: torch.Tensor) -> None:
        step(self, skip)
        if next(count) == 4:
            next(iter(self.names)).data[0] = math.inf

    monkeypatch.setattr(Optimizer, "step", overflow)
    with pytest.raises(
        ValueError,
        match=r"model head_weight.* not finite at step 5, which was not saved",
    ):
        train(configure(tmp_path, *ALWAYS_SAVE))
    last = finding.find_checkpoint(tmp_path / "tiny")
    assert last.name == "step-00000004"
    assert all(bool(tensor.isfinite().all()) for tensor in tensors_of(last).values())


# ---------------------------------------------------------------------------------------------------------------------
# The time cap


def test_minutes_are_a_cap_and_schedules_count_steps(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = SimpleNamespace(now=0.0)
    fake = SimpleNamespace(monotonic=lambda: clock.now, perf_counter=time.perf_counter)
    monkeypatch.setattr("hybrid.training.trainer.time", fake)
    before_step(monkeypatch, lambda step: setattr(clock, "now", clock.now + 30))
    options = ["trainer.minutes=2", "trainer.steps=50", "trainer.eval_every=0", "trainer.save_every=0"]
    config = configure(tmp_path, *options, "trainer.log_every=1")
    folder = train(config)
    assert "trainer.minutes: stopped at step 4 of 50" in caplog.text
    assert finding.step_of(finding.find_checkpoint(folder)) == 4
    records = read_metrics(folder)
    assert "val/nelbo" in records[-1]
    rates = [record["optim/lr"] for record in records if "optim/lr" in record]
    assert rates == pytest.approx([0.01 * lr_factor(step, 50, config.optim) for step in range(4)])


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
    orders = {f"unmasking_order/{name}" for name in ("first_hitting", "left_to_right", "entropy", "confidence")}
    assert {"attention_pattern"} | orders <= set(tags["images"])
    assert {"config/text_summary", "samples/text_summary"} <= set(tags["tensors"])


def test_one_token_a_block_has_no_order_to_show(configure: Configure, tmp_path: Path) -> None:
    events = EventAccumulator(str(train(configure(tmp_path, "trainer.steps=1", "objective.block_size=1"))))
    events.Reload()
    assert set(events.Tags()["images"]) == {"attention_pattern", "loss_by_count/b1"}


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
    monkeypatch.setattr("hybrid.runs.run.Validator.__call__", lambda self: {"val/nelbo": next(bounds)})
    options = ["trainer.eval_every=2", "trainer.save_every=2", "trainer.keep_last=1", "eval.sample_tokens=0"]
    checkpoints = train(configure(tmp_path, *options)) / "checkpoints"
    assert {path.name for path in checkpoints.glob("step-*")} == {"step-00000004", "step-00000008"}
    assert finding.read_best(checkpoints) == (checkpoints / "step-00000004", 1.0)


def test_the_best_may_be_the_last(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = iter([3.0, 2.0])
    monkeypatch.setattr("hybrid.runs.run.Validator.__call__", lambda self: {"val/nelbo": next(bounds)})
    checkpoints = train(configure(tmp_path, "trainer.keep_last=1", "eval.sample_tokens=0")) / "checkpoints"
    assert finding.read_best(checkpoints) == (checkpoints / "step-00000008", 2.0)
    assert {path.name for path in checkpoints.glob("step-*")} == {"step-00000008"}


@pytest.mark.slow
def test_evaluation_uses_the_averaged_weights_and_gives_the_others_back(configure: Configure, tmp_path: Path) -> None:
    looking = train(configure(tmp_path / "a", "trainer.eval_every=1", "trainer.sample_every=3"))
    blind = train(configure(tmp_path / "b", "trainer.eval_every=0"))
    a, b = (tensors_of(finding.find_checkpoint(folder)) for folder in (looking, blind))
    assert_same_tensors(a, b)
    last = read_metrics(blind)[-1]
    lm = hybrid.load(blind)
    from hybrid.likelihoods.rows import bound

    data = Run.of(configure(tmp_path / "c")).data
    expected = bound(lm.model, data.validation, 4, rows=4, draws=2, precision=contextlib.nullcontext)
    assert last["val/nelbo/b4"] == pytest.approx(expected.nats_per_token, rel=1e-6)


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


def test_a_text_that_holds_its_mask_is_refused_before_anything_is_written(configure, tmp_path) -> None:
    from hybrid.runs.run import Run

    for token in (3, 0):
        config = configure(tmp_path, f"model.mask_token_id={token}")
        with pytest.raises(ValueError, match=rf"model.mask_token_id: {token} stands [\d,]+ times in the text"):
            Run.of(config)
    Run.of(configure(tmp_path, "model.mask_token_id=3", "model.ban_mask=false"))  # there it counts as any token does
    assert not (tmp_path / "tiny").exists()
