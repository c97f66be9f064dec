"""Tables of results: a row is a dataclass whose fields say how their columns are headed and formatted.

@dataclass(frozen=True)
class Row:
    decoder: str = column("decoder")
    nfe: list[float] = column("forwards", plus_minus)     # one value a seed
    solved: dict[int, float] = column("solved at {}, %", ".1f")    # a column for each key

Table([Row("margin", [3.0, 3.2], {1: 90.5, 8: 30.0})]).markdown()
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hybrid.results.text import aligned, formatted


def column(heading: str, form: str | Callable[[Any], Any] = "", optional: bool = False, **field: Any) -> Any:
    """Declare a field of a row.

    Args:
        heading: of its column. With braces (`{}`, `{:.0f} s`) the field is a mapping: a column for each key.
        form: a format like ".3f", or a function of the value; not asked about None, which is shown as a dash.
        optional: the column is left out if no row has a value.
        field: as of `dataclasses.field`.
    """
    return dataclasses.field(**field, metadata={"heading": heading, "form": form, "optional": optional})


@dataclass(frozen=True)
class Table:
    """`rows` are instances of one dataclass; those of its fields that `column` made are shown."""

    rows: Sequence[Any]
    caption: str = ""

    @cached_property
    def _values(self) -> list[tuple[str, list[Any]]]:
        """Each heading, and what stands under it."""
        found = []
        for field in dataclasses.fields(self.rows[0]) if self.rows else ():
            if "heading" not in field.metadata:
                continue
            heading, form, optional = (field.metadata[name] for name in ("heading", "form", "optional"))
            values = [getattr(row, field.name) for row in self.rows]
            if "{" in heading:
                for key in dict.fromkeys(key for value in values for key in value):
                    found.append((heading.format(key), [_shown(value.get(key), form) for value in values]))
            elif not optional or any(value is not None for value in values):
                found.append((heading, [_shown(value, form) for value in values]))
        return found

    @property
    def columns(self) -> list[str]:
        return [heading for heading, _ in self._values]

    @cached_property
    def cells(self) -> list[list[Any]]:
        """The rows as they are shown: texts and numbers; None where there is no value."""
        return [list(row) for row in zip(*(values for _, values in self._values), strict=True)]

    def records(self) -> list[dict[str, Any]]:
        """Map headings to cells, for JSON."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.cells]

    def markdown(self) -> str:
        shown = [[cell(value).replace("|", "\\|") for value in row] for row in self.cells]
        lines = [self.columns, ["---"] * len(self.columns), *shown]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{self.caption}\n\n{body}" if self.caption else body

    def text(self, left: Collection[int] = (0,)) -> str:
        """Align plain text, the columns numbered in `left` flush left."""
        return aligned([self.columns, *([cell(value) for value in row] for row in self.cells)], left)


def _shown(value: Any, form: str | Callable[[Any], Any]) -> Any:
    if value is None or not form:
        return value
    return form(value) if callable(form) else formatted(value, form)


def cell(value: Any) -> str:
    """Write what stands in a cell: floats with four significant digits, a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def plus_minus(values: Sequence[float], digits: int = 3, sign: str = "") -> str:
    """Write `mean ± standard error` of independent values (one per seed); without the error of a single one.

    `sign="+"` shows that of a difference.
    """
    import numpy as np

    mean = f"{np.mean(values):{sign}.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {standard_error(values):.{digits}f}"


def standard_error(values: Sequence[float]) -> float:
    """std / sqrt(n): the error of the mean of independent values; NaN of a single one."""
    import numpy as np

    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
