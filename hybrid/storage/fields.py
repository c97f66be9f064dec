"""Values of JSON files that may be damaged, or of another version: each is asked for by name and kind."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from hybrid.options import shown

_MISSING = object()
_MOST = 2.0**63
"""Of a number: beyond, neither steps nor axes mean anything."""


class Fields:
    """The fields of a JSON object; `where` names it in messages.

    Every method raises a ValueError that names file, field and value if the field is missing or of another kind. With
    an `or_else` a field that is missing or null has that value.
    """

    def __init__(self, content: Any, where: str) -> None:
        if not isinstance(content, dict):
            raise ValueError(f"{where} holds {shown(content)} instead of an object; make it again")
        self.content, self.where = content, where

    def integer(self, name: str, least: int = 0, or_else: Any = _MISSING) -> Any:
        return self._get(
            name, or_else, lambda v: type(v) is int and least <= v < _MOST, f"an integer of {least} or more"
        )

    def number(self, name: str, or_else: Any = _MISSING, least: float = -_MOST) -> Any:
        """Get an integer or a finite float, as a float."""
        kind = "a finite number" + (f" of {least:g} or more" if least > -_MOST else "")
        value = self._get(name, or_else, lambda v: is_number(v) and v >= least, kind)
        return float(value) if type(value) is int else value

    def text(self, name: str, or_else: Any = _MISSING) -> Any:
        return self._get(name, or_else, _is_text, "a text")

    def flag(self, name: str, or_else: Any = _MISSING) -> Any:
        return self._get(name, or_else, lambda v: isinstance(v, bool), "true or false")

    def inner(self, name: str, or_else: Any = _MISSING) -> Any:
        """Get the `Fields` of an object in it."""
        value = self._get(name, or_else, lambda v: isinstance(v, dict), "an object")
        return value if value is or_else else Fields(value, self._place(name))

    def rows(self, name: str, or_else: Any = _MISSING) -> Iterator[Fields]:
        """Go through the `Fields` of each object of a list in it."""
        value = self._get(name, or_else, lambda v: isinstance(v, list), "a list")
        yield from (Fields(row, f"{self._place(name)}[{i}]") for i, row in enumerate(value))

    def _get(self, name: str, or_else: Any, is_kind: Any, kind: str) -> Any:
        value = self.content.get(name)
        if value is None and or_else is not _MISSING:
            return or_else
        if name not in self.content:
            raise ValueError(f"{self._place(name)}: is missing; it was made by another version, or is damaged")
        if not is_kind(value):
            raise ValueError(f"{self._place(name)}: {shown(value)} is not {kind}; make it again")
        return value

    def _place(self, name: str) -> str:
        return f"{self.where}.{name}" if ": " in self.where else f"{self.where}: {name}"


def counted(values: dict[str, Any], prefix: str = "") -> dict[int, float]:
    """`{"n001": 1.5}` -> `{1: 1.5}`: the numbers whose names go on behind `prefix` with a count."""
    found = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    return {int(n): float(value) for n, value in found.items() if n.isdecimal() and is_number(value)}


def _is_text(value: Any) -> bool:
    """Return whether it is a text that can be written into a file: JSON may hold halves of characters."""
    return isinstance(value, str) and value.encode(errors="replace").decode() == value


def is_number(value: Any) -> bool:
    """Return whether a value of JSON is a finite number, of a size that can be drawn."""
    return type(value) in (int, float) and abs(value) < _MOST and math.isfinite(value)
