"""metrics.jsonl on a disk that fills, and what is read of a file that has been damaged."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid.training.metrics import MetricsFile, read_metrics, supersede
from hybrid.training.tracking import Tracker

LINES = [{"step": step, "time": step / 10, "train/nelbo": 2.5} for step in range(6)]


class FullAfter:
    """A raw file on a disk that has room for so many bytes more: it writes what fits, and says how much that was."""

    def __init__(self, raw, room: int):
        self.raw, self.room = raw, room

    def write(self, content: bytes) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self.raw.write(content[: self.room])
        self.room -= written
        return written

    def __getattr__(self, name: str):
        return getattr(self.raw, name)


@pytest.mark.parametrize("room", [0, 1, 9, 40, 44])
def test_a_line_is_written_whole_or_not_at_all(room: int, tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path)
    metrics.append(LINES[0])
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    raw = metrics.raw
    metrics.raw = FullAfter(raw, room)  # type: ignore[assignment]
    with pytest.raises(OSError, match=r"metrics\.jsonl: could not be written: No space left") as caught:
        metrics.append(LINES[1])
    assert caught.value.errno == errno.ENOSPC and "\n" not in str(caught.value)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    metrics.raw = raw  # space has been freed
    metrics.append(LINES[2])
    metrics.close()
    assert read_metrics(tmp_path) == [LINES[0], LINES[2]]


def test_a_write_that_takes_several_goes_is_finished(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path)
    raw, metrics.raw = metrics.raw, FullAfter(metrics.raw, 10**9)  # type: ignore[assignment]
    metrics.raw.write = lambda content: raw.write(content[:7])  # type: ignore[method-assign]
    metrics.append(LINES[1])
    metrics.close()
    assert read_metrics(tmp_path) == [LINES[1]]


@pytest.mark.slow
def test_a_limit_of_the_system_ends_in_one_line_and_whole_records(tmp_path: Path) -> None:
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom hybrid import cli\n"
        "from hybrid.training.tracking import Tracker\n"
        "def main():\n"
        f"    with Tracker(Path({str(tmp_path)!r})) as tracker:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "        for step in range(1000): tracker.log(step, {'a': 1.0})\n"
        "sys.exit(cli.run(main))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "File too large" in done.stderr
    content = (tmp_path / "metrics.jsonl").read_bytes()
    assert content.endswith(b"\n") and [json.loads(line)["step"] for line in content.splitlines()] == list(
        range(content.count(b"\n"))
    )


def test_a_file_that_a_full_disk_has_damaged_is_read_and_mended(tmp_path: Path) -> None:
    """Torn in the middle of a line, and gone on with behind it: what earlier versions wrote."""
    lines = [json.dumps(line) for line in LINES]
    content = f"{lines[0]}\n{lines[1][:10]}{lines[2]}\n{lines[3][:17]}{lines[4][:30]}{lines[5]}\n"
    (tmp_path / "metrics.jsonl").write_text(content)
    assert read_metrics(tmp_path) == [LINES[0], LINES[2], LINES[5]]
    Tracker(tmp_path, resume_step=5).close()
    assert (tmp_path / "metrics.jsonl").read_text() == f"{lines[0]}\n{lines[2]}\n{lines[5]}\n"
    assert (tmp_path / "metrics.jsonl.superseded").read_text() == f"{lines[1][:10]}\n{lines[3][:17]}{lines[4][:30]}\n"


def test_of_a_damaged_line_the_later_record_is_superseded_too(tmp_path: Path) -> None:
    lines = [json.dumps(line) for line in LINES]
    (tmp_path / "metrics.jsonl").write_text(f"{lines[0]}\n{lines[1][:10]}{lines[4]}\n")
    assert supersede(tmp_path, 3) == [LINES[0]]
    assert (tmp_path / "metrics.jsonl.superseded").read_text() == f"{lines[1][:10]}{lines[4]}\n"


@pytest.mark.parametrize(
    "line",
    [
        "{}", "[]", "3", "null", '"step"', "[" * 100_000, '{"a":' * 100_000, '{"step": 1, "time": 1e999}',
        '{"step": 1, "time": NaN}', '{"step": 1.5, "time": 1}', '{"step": 1, "time": "2"}', '{"step": 1, "time": -1}',
        '{"step": 1, "time": 1, "val/nelbo": {}}', '{"step": 1, "time": 1, "val/nelbo": [1]}', "\xff",
        '{"step": ' + "9" * 5000 + ', "time": 1}', "{" + '"step": 1, "time": ' + "9" * 5000 + "}",
    ],
)  # fmt: skip
def test_a_line_that_is_no_record_is_named_with_the_way_out(line: str, tmp_path: Path) -> None:
    good = json.dumps(LINES[0])
    (tmp_path / "metrics.jsonl").write_bytes(f"{good}\n{line}\n{good}\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2 is not a record .*resume=auto") as caught:
        read_metrics(tmp_path)
    assert len(str(caught.value)) < 500
    supersede(tmp_path, None)
    assert read_metrics(tmp_path) == [LINES[0], LINES[0]]
