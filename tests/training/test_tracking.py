"""What a run writes down: metrics.jsonl, and its TensorBoard view."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from event_files import events_of

from hybrid.runs.charts import chart_layout
from hybrid.training.metrics import read_metrics
from hybrid.training.tracking import Tracker


def lines_of(folder: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def scalar(value) -> float:
    return value.tensor.float_val[0] if value.tensor.float_val else np.frombuffer(value.tensor.tensor_content, "<f4")[0]


def test_every_line_is_on_the_disk_when_log_returns(tmp_path):
    with Tracker(tmp_path) as tracker:
        tracker.log(0, {"train/nelbo": torch.tensor(2.5), "count": np.int64(3), "val/method": "bound"})
        tracker.log(1, {"train/nelbo": math.nan, "x": math.inf, "y": np.float32(0.5)})
        lines = lines_of(tmp_path)
    assert [line.pop("time") >= 0 for line in lines] == [True, True]
    assert lines == [
        {"step": 0, "train/nelbo": 2.5, "count": 3, "val/method": "bound"},
        {"step": 1, "train/nelbo": None, "x": None, "y": 0.5},
    ]
    assert [{**line, "time": 0} for line in read_metrics(tmp_path)] == [{**line, "time": 0} for line in lines]
    events = events_of(tmp_path)
    assert (events["train/nelbo"][0][0], scalar(events["train/nelbo"][0][1])) == (0, 2.5)
    assert math.isnan(scalar(events["train/nelbo"][1][1]))
    assert "val/method" not in events


def test_bad_values_are_named_and_leave_no_line(tmp_path):
    with Tracker(tmp_path) as tracker:
        for values, message in (
            ({"step": 1}, "metric 'step': this name is taken"),
            ({"a": [1, 2]}, r"metric 'a': \[1, 2\] is neither"),
            ({"a": np.zeros(2)}, r"metric 'a': .* is neither"),
            ({"a": torch.zeros(2)}, r"metric 'a': .* is neither"),
            ({"a": None}, "metric 'a': None is neither"),
        ):
            with pytest.raises(ValueError, match=message):
                tracker.log(0, values)
    assert lines_of(tmp_path) == []


def test_resuming_moves_later_records_away_and_loses_none(tmp_path):
    with Tracker(tmp_path) as tracker:
        for step in range(6):
            tracker.log(step, {"a": float(step)})
    before = lines_of(tmp_path)
    with Tracker(tmp_path, resume_step=3) as tracker:
        assert [line["step"] for line in lines_of(tmp_path)] == [0, 1, 2, 3]
        tracker.log(4, {"a": 40.0})
        tracker.log(5, {"a": 50.0})
    with Tracker(tmp_path, resume_step=4) as tracker:
        tracker.log(5, {"a": 500.0})
    assert [line["a"] for line in read_metrics(tmp_path)] == [0, 1, 2, 3, 40, 500]
    assert [line["a"] for line in lines_of(tmp_path, "metrics.jsonl.superseded")] == [4, 5, 50]
    assert lines_of(tmp_path, "metrics.jsonl.superseded")[:2] == before[4:]
    times = [line["time"] for line in read_metrics(tmp_path)]
    assert times == sorted(times)
    assert [step for step, _ in events_of(tmp_path)["session_log"]] == [
        0,
        4,
        5,
    ]  # from where it forgets


@pytest.mark.parametrize("resume_step, steps", [(-1, [9]), (1, [0, 1, 9])])
def test_tensorboard_hides_what_is_made_again_at_the_first_resume(monkeypatch, tmp_path, resume_step, steps):
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.summary.writer.event_file_writer import AtomicCounter

    # Of the files of one process and second, TensorBoard reads number 10 before number 9.
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer._global_uid", AtomicCounter(0))
    with Tracker(tmp_path) as tracker:
        for step in range(4):
            tracker.log(step, {"a": float(step)})
    with Tracker(tmp_path, resume_step=resume_step) as tracker:
        tracker.log(9, {"a": 9.0})
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Tensors("a")] == steps
    assert [record["step"] for record in read_metrics(tmp_path)] == steps


def test_resuming_where_it_stopped_changes_nothing(tmp_path):
    with Tracker(tmp_path) as tracker:
        tracker.log(7, {"a": 1.0})
    content = (tmp_path / "metrics.jsonl").read_bytes()
    Tracker(tmp_path, resume_step=7).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == content
    assert not (tmp_path / "metrics.jsonl.superseded").exists()


def test_time_goes_on_where_the_resumed_run_had_stopped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 1000.5}\n{"step": 2, "time": 2000.5}\n')
    with Tracker(tmp_path, resume_step=1) as tracker:
        tracker.log(2, {})
    assert 1000.5 <= lines_of(tmp_path)[1]["time"] < 1100


@pytest.mark.parametrize("tail", [b'{"step": 2, "ti', b'{"step": 2}', b"\xff\x00", b'{"step": 2, "time": 1.0, "a": 5'])
def test_a_torn_last_line_is_skipped_and_kept_aside(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0, "time": 0.1}\n{"step": 1, "time": 0.2}\n' + tail)
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1]
    with Tracker(tmp_path, resume_step=1) as tracker:
        tracker.log(2, {"a": 1.0})
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1, 2]
    assert (tmp_path / "metrics.jsonl.superseded").read_bytes() == tail + b"\n"


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 0, "time": 0.1}\n{"step": 1, "time": 0.2}')
    with Tracker(tmp_path, resume_step=1) as tracker:
        tracker.log(2, {})
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1, 2]


def test_a_record_file_that_is_missing_or_damaged_in_the_middle_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"metrics\.jsonl: cannot be read"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 0, "time": 0.1}\nnonsense\n{"step": 1, "time": 0.2}\n')
    with pytest.raises(ValueError, match="line 2 is not a record"):
        read_metrics(tmp_path)


def test_hparams_are_in_the_same_run_with_the_final_metrics(tmp_path):
    from tensorboard.plugins.hparams import metadata

    config = {"model": {"dim": 8, "tied": True}, "objective": {"block_size": [1, 4]}, "minutes": None, "name": "x"}
    with Tracker(tmp_path / "run") as tracker:
        tracker.hparams(config)
        tracker.log(9, {"val/nelbo": 1.5})
        tracker.hparams(config, {"val/nelbo": 1.25})
    assert [path.name for path in (tmp_path / "run").iterdir() if path.is_dir()] == []
    events = events_of(tmp_path / "run")
    start = events[metadata.SESSION_START_INFO_TAG][0][1].metadata.plugin_data.content
    shown = metadata.parse_session_start_info_plugin_data(start).hparams
    assert shown["model.dim"].number_value == 8
    assert {key: shown[key].string_value for key in ("model.tied", "objective.block_size", "minutes", "name")} == {
        "model.tied": "true",
        "objective.block_size": "[1, 4]",
        "minutes": "null",
        "name": "x",
    }
    assert metadata.EXPERIMENT_TAG not in events
    assert len(events[metadata.SESSION_END_INFO_TAG]) == 1
    assert [(step, scalar(value)) for step, value in events["final/val/nelbo"]] == [(9, 1.25)]


def test_layout_text_and_image_reach_tensorboard(tmp_path):
    from tensorboard.plugins.custom_scalar import layout_pb2

    text = "# not a heading\n```\n<b>a</b>"
    with Tracker(tmp_path) as tracker:
        tracker.layout(chart_layout([4, 1], False))
        tracker.text("samples", text, 3)
        tracker.text("card", "# heading", 3, markdown=True)
        tracker.image("attention", np.zeros((4, 5, 3), np.uint8), 3)
    events = events_of(tmp_path)
    layout = layout_pb2.Layout.FromString(events["custom_scalars__config__"][0][1].tensor.string_val[0])
    assert [category.title for category in layout.category] == list(chart_layout([4, 1], False))
    by_size = [chart.title for chart in layout.category[1].chart]
    assert by_size == [f"block size {b}: negative ELBO, nats per token" for b in (4, 1)]
    shown = events["samples/text_summary"][0][1].tensor.string_val[0].decode()
    assert shown == "    # not a heading\n    ```\n    <b>a</b>"
    assert events["card/text_summary"][0][1].tensor.string_val[0] == b"# heading"
    width, height = events["attention"][0][1].tensor.string_val[:2]
    assert (width, height) == (b"5", b"4")


def test_importing_stays_light():
    code = (
        "import sys, hybrid.training.tracking, hybrid.checkpoints.saving, hybrid.runs.plots\n"
        "print([m for m in ('tensorboard', 'matplotlib', 'datasets') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
