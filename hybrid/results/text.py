"""Tables as plain text."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Align a heading, a line under it, and rows. Columns are flush right, those numbered in `left` flush left."""
    columns = []
    for number, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        columns.append([cell.ljust(width) if number in left else cell.rjust(width) for cell in column])
    text = ["  ".join(row) for row in zip(*columns, strict=True)]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def formatted(value: float | str | None, form: str) -> str:
    """Format a cell; a dash where there is no value, or one that is not a number."""
    return "-" if value is None or value != value else format(value, form)
