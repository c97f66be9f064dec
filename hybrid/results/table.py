"""Results as Markdown, with the command, commit, machine and seeds that made them beside the numbers."""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hybrid.results.environment import environment
from hybrid.storage import atomic, overwriting

_MARK = "<!-- Written by a command; edits are lost when it runs again. -->"


@dataclass(frozen=True)
class Table:
    """`rows` hold a value per column; floats are shown with four significant digits, None as a dash."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""

    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *([cell(v) for v in row] for row in self.rows)]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{self.caption}\n\n{body}" if self.caption else body


def cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def plus_minus(values: Sequence[float], digits: int = 3, sign: str = "") -> str:
    """`mean ± standard error` over independent values (one per seed); without the error where there is only one.

    `sign="+"` shows that of a difference.
    """
    mean = f"{np.mean(values):{sign}.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {standard_error(values):.{digits}f}"


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of independent values; NaN of a single one."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def provenance(command: str, seeds: Sequence[int], device: str = "cpu") -> str:
    """One sentence: how to make the numbers again, and on what they were made."""
    e = environment(device)
    commit = commit_of(e) if e["commit"] is None else f"commit {commit_of(e)}"
    return f"`{command}`; {commit}; {machine_of(e)}; {listed('seed', seeds)}; {e['started'][:10]}."


def listed(noun: str, values: Sequence[Any]) -> str:
    """`seed 0`, `seeds 0, 1`."""
    return f"{noun}{'' if len(values) == 1 else 's'} {', '.join(map(str, values))}"


def commit_of(environment: Mapping[str, Any]) -> str:
    """From `tracking.environment`."""
    if environment["commit"] is None:
        return "no commit"
    return environment["commit"][:7] + (" with changes" if environment["dirty"] else "")


def machine_of(environment: Mapping[str, Any]) -> str:
    """From `tracking.environment`: processor or GPU, threads, torch."""
    e = environment
    name = e["processor"] if e["device"] == "cpu" else e["device"]
    return f"{name}, threads: {e['threads']}, torch {e['libraries']['torch']}"


def command_of(module: str) -> str:
    """The command line that is running."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def refuse_foreign(output: str | Path | None, figures: int = 0) -> None:
    """Results, and the plots beside them, may replace older results, but nothing else.

    Args:
        figures: how many plots there will be.

    Raises:
        ValueError: something is there that no experiment wrote.
    """
    if output is not None:
        overwriting.refuse_overwriting(Path(output), _is_result, "was not written by an experiment")
        refuse_foreign_figures(Path(output), [figure_name(Path(output), number) for number in range(figures)])


def refuse_foreign_figures(result: Path, names: Sequence[str]) -> None:
    """Raise a ValueError if a plot would replace what the result of before does not show."""
    shows = result.read_text(encoding="utf-8", errors="replace") if _is_result(result) else ""
    for name in names:
        overwriting.refuse_overwriting(
            result.with_name(name), lambda p: p.is_file() and f"]({p.name})" in shows,
            f"is no plot of {result}",
        )  # fmt: skip


def _is_result(path: Path) -> bool:
    return overwriting.has_mark(path, _MARK)


def figure_name(result: Path, number: int) -> str:
    return f"{result.stem}.png" if number == 0 else f"{result.stem}-{number + 1}.png"


def publish(
    output: str | None, module: str, title: str, seeds: Sequence[int], parts: Sequence[str | Table],
    figures: dict[str, np.ndarray] | None = None, device: str = "cpu",
) -> None:  # fmt: skip
    """Print the parts and, if there is an `output`, write them there with `python -m module ...` as their origin."""
    print("\n\n".join(part if isinstance(part, str) else part.markdown() for part in parts))
    if output is not None:
        write_result(Path(output), title, provenance(command_of(module), seeds, device), parts, figures)
        print(f"wrote {output}", file=sys.stderr)


def write_result(
    path: Path, title: str, origin: str, parts: Sequence[str | Table], figures: dict[str, np.ndarray] | None = None
) -> None:
    """Write `path` (Markdown) and its figures beside it: `figures` maps a caption to an image, uint8 [h, w, 3].

    Raises:
        ValueError: `path` holds something that no experiment wrote.
    """
    from PIL import Image

    refuse_foreign(path, len(figures or {}))
    path.parent.mkdir(parents=True, exist_ok=True)
    text = [f"# {title}", _MARK, f"Made by {origin}"]
    text += [part if isinstance(part, str) else part.markdown() for part in parts]
    names = {figure_name(path, number): caption for number, caption in enumerate(figures or {})}
    text += [f"![{caption}]({name})" for name, caption in names.items()]
    atomic.write_text_atomic(path, "\n\n".join(text) + "\n")  # first: a plot is known by the text that shows it
    for name, caption in names.items():
        png = io.BytesIO()
        Image.fromarray((figures or {})[caption]).save(png, format="png", optimize=True)
        atomic.write_bytes_atomic(path.with_name(name), png.getvalue())
