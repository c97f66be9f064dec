"""Results as Markdown, with the command, commit, machine and seeds that made them beside the numbers."""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybrid.results.environment import commit_of, environment, machine_of
from hybrid.results.table import Table
from hybrid.storage import atomic, overwriting

_MARK = "<!-- Written by a command; edits are lost when it runs again. -->"


def provenance(command: str, seeds: Sequence[int], device: str = "cpu") -> str:
    """Say in one sentence how to make the numbers again, and on what they were made."""
    e = environment(device)
    commit = commit_of(e) if e["commit"] is None else f"commit {commit_of(e)}"
    return f"`{command}`; {commit}; {machine_of(e)}; {listed('seed', seeds)}; {e['started'][:10]}."


def listed(noun: str, values: Sequence[Any]) -> str:
    """Write `seed 0`, or `seeds 0, 1`."""
    return f"{noun}{'' if len(values) == 1 else 's'} {', '.join(map(str, values))}"


def command_of(module: str) -> str:
    """Quote the command line that is running."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def refuse_foreign(output: str | Path | None, plots: int = 0) -> None:
    """Refuse to replace anything but older results and the plots beside them.

    Args:
        plots: how many there will be.

    Raises:
        ValueError: something is there that no experiment wrote.
    """
    if output is not None:
        overwriting.refuse_overwriting(Path(output), _is_result, "was not written by an experiment")
        refuse_foreign_plots(Path(output), [plot_name(Path(output), number) for number in range(plots)])


def refuse_foreign_plots(result: Path, names: Sequence[str]) -> None:
    """Raise a ValueError if a plot would replace what the result of before does not show."""
    shows = result.read_text(encoding="utf-8", errors="replace") if _is_result(result) else ""
    for name in names:
        overwriting.refuse_overwriting(
            result.with_name(name), lambda p: p.is_file() and f"]({p.name})" in shows,
            f"is no plot of {result}",
        )  # fmt: skip


def _is_result(path: Path) -> bool:
    return overwriting.has_mark(path, _MARK)


def plot_name(result: Path, number: int) -> str:
    return f"{result.stem}.png" if number == 0 else f"{result.stem}-{number + 1}.png"


def publish(
    output: str | None, module: str, title: str, seeds: Sequence[int], parts: Sequence[str | Table],
    plots: dict[str, np.ndarray] | None = None, device: str = "cpu",
) -> None:  # fmt: skip
    """Print the parts and, if there is an `output`, write them there with `python -m module ...` as their origin."""
    print("\n\n".join(part if isinstance(part, str) else part.markdown() for part in parts))
    if output is not None:
        write_result(Path(output), title, provenance(command_of(module), seeds, device), parts, plots)
        print(f"wrote {output}", file=sys.stderr)


def write_result(
    path: Path, title: str, origin: str, parts: Sequence[str | Table], plots: dict[str, np.ndarray] | None = None
) -> None:
    """Write `path` (Markdown) and its plots beside it: `plots` maps a caption to an image, uint8 [h, w, 3].

    Raises:
        ValueError: `path` holds something that no experiment wrote.
    """
    refuse_foreign(path, len(plots or {}))
    path.parent.mkdir(parents=True, exist_ok=True)
    text = [f"# {title}", _MARK, f"Made by {origin}"]
    text += [part if isinstance(part, str) else part.markdown() for part in parts]
    names = {plot_name(path, number): caption for number, caption in enumerate(plots or {})}
    text += [f"![{caption}]({name})" for name, caption in names.items()]
    atomic.write_text_atomic(path, "\n\n".join(text) + "\n")  # first: a plot is known by the text that shows it
    for name, caption in names.items():
        from PIL import Image

        png = io.BytesIO()
        Image.fromarray((plots or {})[caption]).save(png, format="png", optimize=True)
        atomic.write_bytes_atomic(path.with_name(name), png.getvalue())
