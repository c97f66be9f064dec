"""Options: how a room declares them, how a table entry is chosen and built from a plain dict.

A *table* is a dict from a name to a frozen dataclass whose fields are its options. A *spec* is what a user writes in
YAML or on the command line: either the name alone (`"margin"`) or a mapping (`{"name": "margin", "steps": 8}`).
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any


def option(default: Any, doc: str, choices: Iterable[str] | None = None) -> Any:
    """A dataclass field with a one-line doc (shown by `--help`) and, where the values are few, its choices."""
    metadata = {"doc": doc, "choices": tuple(choices) if choices is not None else None}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def pick(key: str, value: Any, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`; otherwise raise a ValueError that names key, value and choices."""
    names = [str(name) for name in choices]
    if isinstance(value, str) and value in names:
        return value
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"{key}: {value!r} is not one of {', '.join(sorted(names))}{hint}")


def at_least(key: str, value: float, minimum: float) -> None:
    """Raise a ValueError unless `value >= minimum` (NaN fails too)."""
    if not value >= minimum:
        raise ValueError(f"{key}: {value!r} is too small; it must be at least {minimum}")


def build(table: Mapping[str, type], spec: Any, key: str) -> Any:
    """Build an entry of `table` from `spec`; an object that is no spec (an instance of the user's own) passes through.

    Raises:
        ValueError: unknown name, unknown option or an option of the wrong type; names the key and what is allowed.
    """
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping):
        if spec is None or isinstance(spec, (bool, int, float, list)):
            raise ValueError(f"{key}: {spec!r} is neither a name nor a mapping with one; names: {', '.join(sorted(table))}")
        return spec
    arguments = {str(name): value for name, value in spec.items()}
    if "name" not in arguments:
        raise ValueError(f"{key}: {dict(spec)!r} has no 'name'; one of {', '.join(sorted(table))}")
    name = pick(key, arguments.pop("name"), table)
    entry: Any = table[name]
    hints = typing.get_type_hints(entry)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(entry) if f.init}
    for option_name, value in arguments.items():
        if not fields:
            raise ValueError(f"{key}.{option_name}: {name} has no options")
        pick(f"{key} ({name})", option_name, fields)
        arguments[option_name] = convert(f"{key}.{option_name}", value, fields[option_name])
    try:
        return entry(**arguments)
    except TypeError as error:
        raise ValueError(f"{key}: {name} cannot be built from {arguments!r}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{key}.{error}") from None


def convert(key: str, value: Any, annotation: Any) -> Any:
    """Check `value` against a scalar annotation (int, float, bool, str, Any, or a union with None) and return it."""
    allowed = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    if Any in allowed or (value is None and type(None) in allowed):
        return value
    if bool in allowed and isinstance(value, bool):
        return value
    if int in allowed and isinstance(value, int) and not isinstance(value, bool):
        return value
    if float in allowed and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if str in allowed and isinstance(value, str):
        return value
    if not set(allowed) <= {int, float, bool, str, type(None)}:
        return value
    names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
    raise ValueError(f"{key}: {value!r} is a {type(value).__name__}; it must be {names}")
