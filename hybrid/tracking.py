"""What a run writes down: metrics.jsonl (the record), TensorBoard (a view of it), its environment.

metrics.jsonl has one JSON object a line: `step`, `time` (seconds of training, going on where a resumed run had stopped)
and `tag: value` pairs. A value that is not finite is null.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hybrid.atomic import to_json, write_text_atomic
from hybrid.figures import rasterise

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.jsonl"
SUPERSEDED = "metrics.jsonl.superseded"
_LIBRARIES = (
    "hybrid",
    "torch",
    "numpy",
    "xformers",
    "datasets",
    "tokenizers",
    "omegaconf",
    "safetensors",
    "tensorboard",
)


def charts(block_sizes: Sequence[int], has_other_losses: bool) -> dict[str, dict[str, list[str]]]:
    """Charts that show all runs together, category -> title -> patterns of tags.

    TensorBoard joins the charts of all runs, so that each block size that one of them is evaluated at has charts of its
    own, side by side.
    """
    likelihood = {"training: negative ELBO, nats per token": ["^train/nelbo$"]}
    if has_other_losses:
        likelihood["training: other objectives, nats per token"] = ["^train/loss$", "^train/ar_nll$"]
    likelihood["validation: negative ELBO, nats per token"] = ["^val/nelbo$"]
    likelihood["bits per byte"] = ["^val/bits_per_byte"]
    by_size = {f"block size {b}: negative ELBO, nats per token": [f"^val/nelbo/b{b}$"] for b in block_sizes}
    by_count = {f"block size {b}: nats per masked token": [f"^val_by_count/b{b}/"] for b in block_sizes if b > 1}
    return {
        "likelihood": likelihood,
        "by block size": by_size,
        "by number of masked tokens": by_count,
        "speed": {"tokens per second": ["^perf/tokens_per_second"]},
        "optimisation": {"learning rates": ["^optim/.*lr"], "gradients and the rest": ["^optim/(?!.*lr)"]},
    }


class Tracker:
    """Writes the metrics of a run to metrics.jsonl and TensorBoard. Use it in a `with` statement, or `close` it."""

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        """Open a run folder; with `resume_step`, drop records of later steps (kept in metrics.jsonl.superseded)."""
        from torch.utils.tensorboard import SummaryWriter

        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        before = _supersede(self.folder, resume_step)
        self._start = time.monotonic() - before
        # Unbuffered: a line is in the file when `log` returns, and a kill can tear the last one only.
        self._metrics = open(self.folder / METRICS, "ab", buffering=0)  # noqa: SIM115
        purge_step = None if resume_step is None else resume_step + 1
        self._writer: SummaryWriter = SummaryWriter(str(self.folder), purge_step=purge_step, flush_secs=10)
        self._step = resume_step or 0

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Record values at a step: numbers (0-d tensors too) go to both places, strings to metrics.jsonl only.

        Raises:
            ValueError: a tag is `step` or `time`, or a value is no number and no string.
            OSError: the disk is full.
        """
        plain = {tag: _number_or_string(tag, value) for tag, value in values.items()}
        record = {"step": int(step), "time": round(time.monotonic() - self._start, 3), **plain}
        self._metrics.write((to_json(record) + "\n").encode())
        self._step = max(self._step, int(step))
        for tag, value in plain.items():
            if not isinstance(value, str):
                self._writer.add_scalar(tag, value, step)

    def text(self, tag: str, text: str, step: int, *, markdown: bool = False) -> None:
        """Show a text in TensorBoard: as it is (a config, a sample), or rendered if it is Markdown."""
        # Indented code is the one Markdown that shows any text unchanged; a fence ends at a fence inside.
        shown = text if markdown else "\n".join("    " + line for line in text.splitlines() or [""])
        self._writer.add_text(tag, shown, step)

    def image(self, tag: str, image: np.ndarray | Figure, step: int) -> None:
        """Show an image [height, width, 3] (uint8, or float in 0..1) or a matplotlib figure."""
        array = image if isinstance(image, np.ndarray) else rasterise(image)
        self._writer.add_image(tag, array, step, dataformats="HWC")

    def hparams(self, config: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Put the run into the HParams table: its (nested or flat) config and, at the end, its final metrics.

        Call it at the start without metrics and at the end with them. The table shows the last value of every tag and
        opens with the first few in alphabetical order, so the final metrics are logged again as `final/...`.
        """
        from torch.utils.tensorboard.summary import hparams

        # SummaryWriter.add_hparams would put them into a run of their own, apart from the curves.
        # The first of the three summaries, which would fix columns and their types from the first run alone, is left
        # out: TensorBoard then works them out from all runs and puts the settings that differ first.
        _, start, end = hparams(_flatten(config), {})
        for summary in (start,) if metrics is None else (start, end):
            self._writer._get_file_writer().add_summary(summary, self._step)
        for tag, value in (metrics or {}).items():
            self._writer.add_scalar(f"final/{tag}", value, self._step)
        self._writer.flush()

    def layout(self, charts: Mapping[str, Mapping[str, list[str]]]) -> None:
        """Define the Custom Scalars page: category -> chart -> regular expressions of tags."""
        layout = {
            category: {title: ["Multiline", patterns] for title, patterns in charts_of_it.items()}
            for category, charts_of_it in charts.items()
        }
        self._writer.add_custom_scalars(layout)

    def flush(self) -> None:
        """Let TensorBoard see everything logged so far."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close both files."""
        self._writer.close()
        self._metrics.close()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Untracked(Tracker):
    """For the ranks of a job that do not write."""

    def __init__(self) -> None:
        """Opens nothing."""

    def log(self, step: int, values: Mapping[str, Any]) -> None: ...

    def text(self, tag: str, text: str, step: int, *, markdown: bool = False) -> None: ...

    def image(self, tag: str, image: np.ndarray | Figure, step: int) -> None: ...

    def hparams(self, config: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None: ...

    def layout(self, charts: Mapping[str, Mapping[str, list[str]]]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run in the order they were written; a last line that a kill tore is skipped.

    Raises:
        ValueError: there is no metrics.jsonl, or a line in its middle is no record.
    """
    path = Path(folder) / METRICS
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    records = []
    for number, line in enumerate(lines, start=1):
        record = _parse(line)
        if record is not None:
            records.append(record)
        elif number < len(lines) or line.endswith(b"\n"):
            raise ValueError(f"{path}: line {number} is not a record (a JSON object with a step and a time)")
    return records


def last_validation(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The last record of `read_metrics` in which the run was evaluated."""
    return next((record for record in reversed(records) if "val/nelbo" in record), None)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        return record if isinstance(record["step"], int) and record["time"] >= 0 else None
    except (ValueError, TypeError, KeyError):
        return None


def _supersede(folder: Path, resume_step: int | None) -> float:
    """Move records of later steps and torn lines out of metrics.jsonl; return the training time of what is left."""
    path = folder / METRICS
    if not path.exists():
        return 0.0
    kept: list[bytes] = []
    dropped: list[bytes] = []
    seconds = 0.0
    content = path.read_bytes()
    for line in content.splitlines():
        record = _parse(line)
        if record is None or (resume_step is not None and record["step"] > resume_step):
            dropped.append(line + b"\n")
        else:
            kept.append(line + b"\n")
            seconds = max(seconds, record["time"])
    if dropped:  # first kept elsewhere, then removed here: a kill in between repeats lines and loses none
        with open(folder / SUPERSEDED, "ab") as file:
            file.writelines(dropped)
            file.flush()
            os.fsync(file.fileno())
    if b"".join(kept) != content:
        write_text_atomic(path, b"".join(kept).decode())
    return seconds


def _number_or_string(tag: str, value: Any) -> int | float | str:
    if tag in ("step", "time"):
        raise ValueError(f"metric {tag!r}: this name is taken by the record itself; choose another")
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        value = value.tolist()
    if not isinstance(value, (int, float, str)):
        raise ValueError(f"metric {tag!r}: {value!r} is neither a number nor a string")
    return value


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str]:
    """`a.b.c -> value` in the types of the HParams table, which has no null, no list, and shows a boolean as 0 or 1."""
    flat: dict[str, int | float | str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            flat[name] = value
        else:
            flat[name] = value if isinstance(value, str) else to_json(value)
    return flat


def environment(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Where and how a run was started, for environment.json; no user name, no host name."""
    libraries = {}
    for name in _LIBRARIES:
        try:
            libraries[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    device = torch.device(device)
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join([Path(sys.argv[0]).name, *map(_without_home, sys.argv[1:])]),
        "python": platform.python_version(),
        "libraries": libraries,
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "cuda": torch.version.cuda,
        **_git(),
    }


def _without_home(word: str) -> str:
    """A word of a command line, for a record: `~` for the home folder where a path begins with it, and UTF-8."""
    home = os.path.expanduser("~")
    if len(Path(home).parts) > 1:  # neither `/` nor a `~` that is unknown
        word = re.sub(rf"(?<![^=:,\[\s'\"]){re.escape(home)}(?=$|[/,:\]\s'\"])", "~", word)
    return word.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git() -> dict[str, Any]:
    """Commit of the repository that this code belongs to, and whether files differ from it; null if there is none."""

    def git(*arguments: str) -> str:
        here = Path(__file__)
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # installed into another repository: not its commit
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
