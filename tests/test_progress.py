"""The progress of training: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest

from hybrid.progress import TrainingProgress


def test_progress_without_a_terminal_is_a_line_now_and_then():
    stream = io.StringIO()
    with TrainingProgress(total=100, start=40, interval=0.0, stream=stream) as progress:
        progress.update(41, tokens=100)
        progress.update(50, tokens=1000, loss=2.5)
        progress.update(60, tokens=1000)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "step 41/100"
    assert re.fullmatch(r"step 50/100: loss 2\.5000, [\d,]+ tokens/s", lines[1])
    assert re.fullmatch(r"step 60/100: loss 2\.5000, [\d,]+ tokens/s, 0:00 left", lines[2])
    assert lines[3:] == []
    stream = io.StringIO()
    with TrainingProgress(total=100, interval=1000.0, stream=stream) as progress:
        for step in range(1, 101):
            progress.update(step, tokens=10)
    assert len(stream.getvalue().splitlines()) == 1  # the last step


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["file", "terminal"])
def test_a_slow_first_step_tells_nothing_of_the_time_left(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch):
    """The first step takes 14 seconds, each of the others 0.3: 800 take 4 minutes, and not 3 hours."""
    now = [0.0]
    monkeypatch.setattr("hybrid.progress.time", SimpleNamespace(monotonic=lambda: now[0]))
    with TrainingProgress(total=800, stream=stream) as progress:
        for step in range(1, 801):
            now[0] += 14.0 if step == 1 else 0.3
            progress.update(step, tokens=2048, loss=7.0)
    shown = stream.getvalue()
    left = [60 * int(minutes) + int(seconds) for minutes, seconds in re.findall(r"(\d+):(\d\d) left", shown)]
    assert 0.3 * 700 < left[0] < 0.3 * 800 and left == sorted(left, reverse=True)
    assert set(re.findall(r"([\d,]+) tokens/s", shown)) <= {"6,826", "6,827"}
    assert "?" not in shown and "step/s" not in shown  # nor does the bar estimate by itself


def test_progress_on_a_terminal_is_a_bar():
    stream = Terminal()
    with TrainingProgress(total=10, start=4, stream=stream) as progress:
        progress.update(5, tokens=10, loss=1.5)
        progress.update(10, tokens=10)
    assert "10/10" in stream.getvalue()
    assert "loss 1.5000" in stream.getvalue()
