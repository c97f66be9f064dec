"""The progress of training: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import io
import re

from hybrid.progress import TrainingProgress


def test_progress_without_a_terminal_is_a_line_now_and_then():
    stream = io.StringIO()
    with TrainingProgress(total=100, start=40, interval=0.0, stream=stream) as progress:
        progress.update(50, tokens=1000, loss=2.5)
        progress.update(60, tokens=1000)
    lines = stream.getvalue().splitlines()
    assert re.fullmatch(r"step 50/100: loss 2\.5000, [\d,]+ tokens/s, 0:00 left", lines[0])
    assert lines[1].startswith("step 60/100: loss 2.5000, ")
    assert lines[2:] == []
    stream = io.StringIO()
    with TrainingProgress(total=100, interval=1000.0, stream=stream) as progress:
        for step in range(1, 101):
            progress.update(step, tokens=10)
    assert len(stream.getvalue().splitlines()) == 1  # the last step


def test_progress_on_a_terminal_is_a_bar():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with TrainingProgress(total=10, start=4, stream=stream) as progress:
        progress.update(5, tokens=10, loss=1.5)
        progress.update(10, tokens=10)
    assert "10/10" in stream.getvalue()
    assert "loss 1.5000" in stream.getvalue()
