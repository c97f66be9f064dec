"""The run folder: metrics.jsonl, its TensorBoard view, the environment."""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from event_files import events_of

from hybrid.results.environment import environment
from hybrid.results.plot import rasterise
from hybrid.runs.plots import plot_attention, plot_losses_by_count
from hybrid.training.metrics import read_metrics
from hybrid.training.tracking import Tracker, charts


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
def test_tensorboard_hides_what_is_made_again_at_the_first_resume(tmp_path, resume_step, steps):
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

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
        tracker.layout(charts([4, 1], False))
        tracker.text("samples", text, 3)
        tracker.text("card", "# heading", 3, markdown=True)
        tracker.image("attention", np.zeros((4, 5, 3), np.uint8), 3)
    events = events_of(tmp_path)
    layout = layout_pb2.Layout.FromString(events["custom_scalars__config__"][0][1].tensor.string_val[0])
    assert [category.title for category in layout.category] == list(charts([4, 1], False))
    by_size = [chart.title for chart in layout.category[1].chart]
    assert by_size == [f"block size {b}: negative ELBO, nats per token" for b in (4, 1)]
    shown = events["samples/text_summary"][0][1].tensor.string_val[0].decode()
    assert shown == "    # not a heading\n    ```\n    <b>a</b>"
    assert events["card/text_summary"][0][1].tensor.string_val[0] == b"# heading"
    width, height = events["attention"][0][1].tensor.string_val[:2]
    assert (width, height) == (b"5", b"4")


def test_each_tag_of_a_run_is_in_one_chart():
    tags = {
        "train/nelbo": 1, "val/nelbo": 1, "val/nelbo/b8": 1, "val/bits_per_byte": 1, "val_by_count/b8/n003": 1,
        "val/nelbo/b1": 1, "val/nelbo/b80": 0, "val_by_count/b80/n003": 0, "train/loss": 1, "train/ar_nll": 1,
        "perf/tokens_per_second": 1, "optim/lr": 1, "optim/muon_lr": 1, "optim/grad_norm": 1, "final/val/nelbo": 0,
    }  # fmt: skip
    patterns = [
        pattern for category in charts([8, 1], True).values() for chart in category.values() for pattern in chart
    ]
    assert {tag: sum(bool(re.match(pattern, tag)) for pattern in patterns) for tag in tags} == tags


@pytest.mark.parametrize(
    "home, word, recorded",
    [
        ("/home/u", "/home/u", "~"),
        ("/home/u", "data.corpus=/home/u/a", "data.corpus=~/a"),
        ("/home/u", "--data=['/home/u/a',/home/u/b]", "--data=['~/a',~/b]"),
        ("/home/u", "/home/u2/a", "/home/u2/a"),
        ("/home/u", "/mnt/home/u/a", "/mnt/home/u/a"),
        ("/home/u/", "/home/u/a", "~/a"),
        ("/", "run.folder=/tmp/x", "run.folder=/tmp/x"),
        ("", "run.folder=/tmp/x", "run.folder=/tmp/x"),
        ("/home/u", "caf\udce9", "caf\\xe9"),
    ],
)
def test_the_home_folder_is_left_out_where_a_path_begins_with_it(monkeypatch, home, word, recorded):
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(sys, "argv", ["train.py", word])
    command = environment()["command"]
    assert shlex.split(command) == ["train.py", recorded]
    command.encode("utf-8")


def test_environment_without_a_home_folder(monkeypatch):
    monkeypatch.setattr("os.path.expanduser", str)  # what it does for an unknown user
    monkeypatch.setattr(sys, "argv", ["train.py", "~/x"])
    assert environment()["command"] == "train.py '~/x'"


def test_environment_names_versions_and_the_command_but_no_home(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/train.py", f"data.corpus={Path.home()}/a b.txt"])
    found = environment()
    assert found["command"] == "train.py 'data.corpus=~/a b.txt'"
    assert found["libraries"]["torch"] == torch.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["device"] == "cpu"
    assert found["threads"] == torch.get_num_threads()
    assert found["commit"] is None or re.fullmatch("[0-9a-f]{40}", found["commit"])
    assert str(Path.home()) not in json.dumps(found)
    monkeypatch.setenv("PATH", "")  # no git
    assert environment()["commit"] is None


def test_importing_stays_light():
    code = (
        "import sys, hybrid.training.tracking, hybrid.checkpoints.checkpoint, hybrid.runs.plots\n"
        "print([m for m in ('tensorboard', 'matplotlib', 'datasets') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("length", [1, 5, 16, 64])
def test_every_cell_of_an_attention_pattern_has_its_pixels(length):
    rng = np.random.default_rng(length)
    mask = rng.random((2 * length, 2 * length)) < 0.5
    image = plot_attention(mask, "random", {"clean": length, "noisy": length})
    cell = max(2, 256 // (2 * length))
    assert image.dtype == np.uint8
    corner = _corner(image, cell * 2 * length)
    centres = image[corner[0] + cell // 2 :: cell, corner[1] + cell // 2 :: cell][: 2 * length, : 2 * length]
    paper = np.abs(centres.astype(int) - 244).max(axis=-1) < 4
    # Where a cell has two pixels, the frame and the line between the streams take one of those beside them.
    clear = np.ones(2 * length, bool)
    clear[[0, length - 1, length, -1]] = cell > 2
    assert (paper == ~mask)[np.ix_(clear, clear)].all()
    mask &= clear[:, None] & clear
    quarters = [image_of_stream[mask_of_stream] for image_of_stream, mask_of_stream in _quarters(centres, mask, length)]
    colours = [{tuple(pixel) for pixel in quarter} for quarter in quarters if len(quarter)]
    assert all(len(colour) == 1 for colour in colours)
    assert len(set.union(*colours)) == len(colours)


def _corner(image: np.ndarray, size: int) -> tuple[int, int]:
    """Where the cells begin: after the margins that the figure was given."""
    height, _ = image.shape[:2]
    return height - size - 34, 44


def _quarters(image, mask, length):
    for rows in (slice(0, length), slice(length, None)):
        for columns in (slice(0, length), slice(length, None)):
            yield image[rows, columns], mask[rows, columns]


def test_figures_leave_no_global_state_and_reject_what_they_cannot_draw():
    from matplotlib.figure import Figure

    before = "matplotlib.pyplot" in sys.modules
    assert plot_losses_by_count({1: 0.5, 2: 1.0, 8: 2.0}, "loss", chance=5.5).shape == (240, 320, 3)
    assert rasterise(Figure(figsize=(1, 2), dpi=50)).shape == (100, 50, 3)
    assert plot_attention(np.ones((5, 5), bool), "one stream", {"clean": 0, "noisy": 5}, 2).ndim == 3
    assert plot_attention(np.ones((5, 5), bool), "unequal", {"clean": 2, "noisy": 3}, 2).ndim == 3
    assert ("matplotlib.pyplot" in sys.modules) == before
    for shape, streams in (((4,), {"a": 4}), ((0, 0), {}), ((3, 4), {"a": 4}), ((4, 4), {"a": 2, "b": 3})):
        with pytest.raises(ValueError, match="mask: shape"):
            plot_attention(np.ones(shape, bool), "bad", streams)
