"""Write down what a run measures: metrics.jsonl (the record) and TensorBoard (a view of it)."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hybrid.results.plot import rasterise
from hybrid.storage.atomic import write_error
from hybrid.storage.json_files import to_json
from hybrid.training.metrics import MetricsFile, last_validation, supersede

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter


class Tracker:
    """Writes the metrics of a run to metrics.jsonl and TensorBoard; to be used in a `with` statement, or closed."""

    validation: dict[str, Any] | None = None
    """The last record with a validation, of those that were there already."""

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        """Open a run folder; with `resume_step`, drop records of later steps (kept in metrics.jsonl.superseded).

        A run that starts over resumes at step -1.
        """
        from torch.utils.tensorboard import SummaryWriter

        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        records = supersede(self.folder, resume_step)
        self.validation = last_validation(records)
        self._start = time.monotonic() - max((record["time"] for record in records), default=0.0)
        self._metrics = MetricsFile(self.folder)
        # TensorBoard takes the first session of a run for its beginning, and hides later steps only at a second one.
        purge_step = 0 if resume_step is None else resume_step + 1
        self._before = threading.excepthook
        threading.excepthook = self._on_thread_error
        try:
            with self._showing():
                self._writer: SummaryWriter = SummaryWriter(str(self.folder), purge_step=purge_step, flush_secs=10)
        except BaseException:
            self._let_go()
            raise
        self._step = max(resume_step or 0, 0)

    def log(self, step: int, values: Mapping[str, Any], *, is_last: bool = False) -> None:
        """Record values at a step: numbers (0-d tensors too) go to both places, strings to metrics.jsonl only.

        Args:
            is_last: by this record the run is known to have ended: what TensorBoard shows is on the disk before it is.

        Raises:
            ValueError: a tag is `step` or `time`, or a value is no number and no string.
            OSError: the line could not be written (disk full, say); the file is as it was.
        """
        plain = {tag: _number_or_string(tag, value) for tag, value in values.items()}
        record = {"step": int(step), "time": round(time.monotonic() - self._start, 3), **plain}
        self._step = max(self._step, int(step))
        if is_last:
            self._show(step, plain)
            self.flush()
        self._metrics.append(record)
        if not is_last:
            self._show(step, plain)

    def _show(self, step: int, plain: Mapping[str, int | float | str]) -> None:
        for tag, value in plain.items():
            if not isinstance(value, str):
                with self._showing():
                    self._writer.add_scalar(tag, value, step)

    def text(self, tag: str, text: str, step: int, *, markdown: bool = False) -> None:
        """Show a text in TensorBoard: as it is (a config, a sample), or rendered if it is Markdown."""
        # Indented code is the one Markdown that shows any text unchanged; a fence ends at a fence inside.
        shown = text if markdown else "\n".join("    " + line for line in text.splitlines() or [""])
        with self._showing():
            self._writer.add_text(tag, shown, step)

    def image(self, tag: str, image: np.ndarray | Figure, step: int) -> None:
        """Show an image [height, width, 3] (uint8, or float in 0..1) or a matplotlib figure."""
        array = image if isinstance(image, np.ndarray) else rasterise(image)
        with self._showing():
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
        with self._showing():
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
        with self._showing():
            self._writer.add_custom_scalars(layout)

    def flush(self) -> None:
        """Let TensorBoard see everything logged so far."""
        with self._showing():
            self._writer.flush()

    def close(self) -> None:
        """Flush and close both files."""
        try:
            with self._showing():
                self._writer.close()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        self._metrics.close()
        threading.excepthook = self._before

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.suppress(OSError) if kind is not None else contextlib.nullcontext():
            self.close()  # an error that has ended the run is the one to tell of

    @contextlib.contextmanager
    def _showing(self) -> Iterator[None]:
        """Surround what TensorBoard writes.

        Raises:
            OSError: it could not (disk full, say); one line. Its thread may have met the error, at an earlier call.
        """
        try:
            yield
        except OSError as error:
            raise write_error(self.folder / "events", error) from None

    def _on_thread_error(self, error: threading.ExceptHookArgs) -> None:
        """Keep silent about TensorBoard's thread, whose error its next call raises."""
        if type(error.thread).__name__ != "_AsyncWriterThread":
            self._before(error)


class Untracked(Tracker):
    """For the ranks of a job that do not write."""

    def __init__(self) -> None:
        """Opens nothing."""

    def log(self, step: int, values: Mapping[str, Any], *, is_last: bool = False) -> None: ...

    def text(self, tag: str, text: str, step: int, *, markdown: bool = False) -> None: ...

    def image(self, tag: str, image: np.ndarray | Figure, step: int) -> None: ...

    def hparams(self, config: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None: ...

    def layout(self, charts: Mapping[str, Mapping[str, list[str]]]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def _number_or_string(tag: str, value: Any) -> int | float | str:
    if tag in ("step", "time"):
        raise ValueError(f"metric {tag!r}: this name is taken by the record itself; choose another")
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        value = value.tolist()
    if not isinstance(value, (int, float, str)):
        raise ValueError(f"metric {tag!r}: {value!r} is neither a number nor a string")
    return value


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str]:
    """Flatten to `a.b.c -> value` in the types of the HParams table, which has no null and no list.

    It shows a boolean as 0 or 1, so that one becomes a word, too.
    """
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
