"""Options: how a room declares them, how a table entry is chosen and built from a plain dict.

A *table* is a dict from a name to a frozen dataclass whose fields are its options. A *spec* is what a user writes in
YAML or on the command line: either the name alone (`"margin"`) or a mapping (`{"name": "margin", "steps": 8}`).
Every error is a ValueError of one line that names the key, the value and what is allowed.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OWN = "; one of your own needs run.imports=MODULE (train.py) or --imports MODULE (other commands)"
"""Said where a table lacks a name."""
_SCALARS = {int, float, bool, str, type(None)}


def option(default: Any, doc: str, choices: Iterable[str] | None = None) -> Any:
    """Declare a dataclass field with a one-line doc (shown by `--help`) and, where the values are few, its choices."""
    metadata = {"doc": doc, "choices": tuple(choices) if choices is not None else None}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def provided(default: Any = dataclasses.MISSING) -> Any:
    """Declare a dataclass field that is no option: who builds the entry provides its value, by its name (`build`).

    Without a default the entry cannot do without it.
    """
    return field(default=default, kw_only=default is dataclasses.MISSING, metadata={"provided": True})


def is_option(f: dataclasses.Field[Any]) -> bool:
    """Return whether a user may set a field of an entry."""
    return f.init and not f.metadata.get("provided", False)


@dataclass(frozen=True)
class Removed:
    """Why a table no longer has an entry, and what to write instead; or the other name of the same entry."""

    why: str
    same_as: str | None = None


REMOVED: dict[tuple[str, str], Removed] = {}
"""(last part of a key, name) of the entries that tables had. Old runs that name one are still read (`renamed`)."""


class RemovedEntry(ValueError):
    """A spec names an entry that its table had once."""


def renamed(key: str, spec: Any) -> Any:
    """Return a spec of an old run with today's names of the entries that were there twice, also in its options."""
    if isinstance(spec, str):
        removed = REMOVED.get((key.rpartition(".")[2], spec))
        return spec if removed is None or removed.same_as is None else removed.same_as
    if isinstance(spec, Mapping):
        return {name: renamed(key if name == "name" else f"{key}.{name}", value) for name, value in spec.items()}
    return spec


def shown(value: Any, most: int = 100) -> str:
    """`repr(value)` for a message, cut to about `most` characters: what a user passes may be of any size."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits; a list nested deeper than the stack
        text = f"<a {type(value).__name__} too large to show>"
    return _cut(text, most)


def bare(text: Any, most: int = 100) -> str:
    """`str(text)` for a message in one line, without quotes, cut to about `most` characters: a name, or what another
    library says."""
    return _cut(" ".join(str(text).split()), most)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 20]}... ({len(text):,} characters)"


def path_of(key: str, value: Any) -> Path:
    """Return the path that a user has given, with a home folder at its start, `~` or `~user`, written out.

    A shell does so only where a word begins with it, and not in `key=~/x`.

    Raises:
        ValueError: it is empty, or nothing that names a file, or there is no such home folder; the message names key
            and value.
    """
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"{key}: {shown(value)} is not a path")
    try:
        path = os.path.expanduser(text)
    except UnicodeEncodeError:  # of the name of a user
        path = text
    if path.startswith("~"):
        raise ValueError(
            f"{key}: {shown(text)}: there is no such home folder; write the whole path, or ./~ for one that begins so"
        )
    return Path(path)


def nearest(value: Any, names: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the name nearest to `value`, upper and lower case alike; empty if none is near."""
    near = near_name(value, names)
    return f" (did you mean {near!r}?)" if near else ""


def near_name(value: Any, names: Iterable[str], least: float = 0.6) -> str | None:
    """Find the name nearest to `value`, of at least this likeness (from 0 to 1); None if none is near."""
    if len(str(value)) > 100:  # no name is; the comparison would take long
        return None
    by_lower = {str(name).lower(): str(name) for name in names}
    near = difflib.get_close_matches(str(value).lower(), by_lower, n=1, cutoff=least)
    return by_lower[near[0]] if near else None


def nearest_path(path: Path) -> str:
    """Do as `nearest` for a path of which only the last part is wrong: what it names lies in the same folder."""
    try:
        near = near_name(path.name, os.listdir(path.parent)[:10_000])  # of more it would take long
    except (OSError, ValueError):
        return ""
    return f" (did you mean {str(path.parent / near)!r}?)" if near else ""


def pick(key: str, value: Any, choices: Iterable[str], also: str = "") -> str:
    """Return `value` if it is one of `choices`; `also` is said last where it is not.

    Raises:
        ValueError: it is not; the message names key, value, choices and the nearest one.
    """
    names = [str(name) for name in choices]
    if isinstance(value, str) and value in names:
        return value
    raise ValueError(f"{key}: {shown(value)} is not one of {', '.join(sorted(names))}{nearest(value, names)}{also}")


def at_least(key: str, value: float, minimum: float) -> None:
    """Raise a ValueError unless `value >= minimum` (NaN fails too)."""
    if not value >= minimum:
        raise ValueError(f"{key}: {shown(value)} is too small; it must be at least {minimum}")


def at_most(key: str, value: float, maximum: float) -> None:
    """Raise a ValueError unless `value <= maximum` (NaN fails too)."""
    if not value <= maximum:
        raise ValueError(f"{key}: {shown(value)} is too large; it must be at most {maximum:,}")


def build(table: Mapping[str, type], spec: Any, key: str, given: Mapping[str, Any] | None = None) -> Any:
    """Build an entry of `table` from `spec`; an object that is no spec (an instance of the user's own) passes through.

    Args:
        given: values of fields that are `provided`; those that the entry does not have are left out. None where an
            entry is built only to be looked at.

    Raises:
        RemovedEntry: a name that the table had once (a ValueError, too).
        ValueError: unknown name, a class where an instance is meant, an entry that is no dataclass, unknown or missing
            option, or an option of the wrong type or range.
    """
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping):
        if spec is None or isinstance(spec, (bool, int, float, list, tuple)):
            names = ", ".join(sorted(table))
            raise ValueError(f"{key}: {shown(spec)} is neither a name nor a mapping with one; names: {names}")
        if isinstance(spec, type):
            name = spec.__name__
            raise ValueError(f"{key}: {name} is a class; give an instance, e.g. {name}(), or the name of an entry")
        return spec
    arguments = {str(name): value for name, value in spec.items()}
    if "name" not in arguments:
        raise ValueError(f"{key}: {shown(dict(spec))} has no 'name'; one of {', '.join(sorted(table))}")
    name = arguments.pop("name")
    if isinstance(name, str) and name not in table and (removed := REMOVED.get((key.rpartition(".")[2], name))):
        raise RemovedEntry(f"{key}: {name!r} was removed: {removed.why}")
    entry: Any = table[pick(key, name, table, OWN)]
    if not dataclasses.is_dataclass(table[name]):
        raise ValueError(f"{key}: {name} is no dataclass; write @dataclass(frozen=True) above it")
    arguments = {**_check_options(key, name, entry, arguments), **_provided(entry, given or {})}
    try:
        return entry(**arguments)
    except TypeError as error:
        raise ValueError(f"{key}: {name} cannot be built from {shown(arguments)}: {error}") from None
    except ValueError as error:
        kind = RemovedEntry if isinstance(error, RemovedEntry) else ValueError
        raise kind(f"{key}.{error}") from None


def needs(key: str, entry: Any, *methods: str) -> None:
    """Raise a ValueError unless an entry has these methods; the message names the first that it lacks."""
    for method in methods:
        if not callable(getattr(entry, method, None)):
            raise ValueError(f"{key}: {shown(entry)} has no method {method!r}; it must have {' and '.join(methods)}")


def _provided(entry: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Take from `given` what the entry has fields for; None for a field that cannot do without."""
    fields = [f for f in dataclasses.fields(entry) if f.metadata.get("provided")]
    return {f.name: given.get(f.name) for f in fields if f.name in given or f.default is dataclasses.MISSING}


def title(spec: str | Mapping[str, Any]) -> str:
    """Name an entry as in a sentence: `pydocs`, `sudoku (size 4)`."""
    if isinstance(spec, str):
        return spec
    options = ", ".join(f"{name} {value}" for name, value in spec.items() if name != "name")
    return f"{spec['name']} ({options})" if options else spec["name"]


def _check_options(key: str, name: str, entry: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments` converted to the types of the entry's fields; the fields without a default must be among them."""
    hints = typing.get_type_hints(entry)
    fields = {f.name: f for f in dataclasses.fields(entry) if is_option(f)}
    converted = {}
    for option_name, value in arguments.items():
        if not fields:
            raise ValueError(f"{key}.{bare(option_name)}: {name} has no options")
        if option_name not in fields:
            allowed = f"{', '.join(fields)}{nearest(option_name, fields)}"
            raise ValueError(
                f"{key}.{bare(option_name)}: {name} has no such option (value {shown(value)}); it has {allowed}"
            )
        converted[option_name] = convert(f"{key}.{option_name}", value, hints[option_name])
        choices = fields[option_name].metadata.get("choices")
        if choices is not None and value is not None:
            pick(f"{key}.{option_name}", value, choices)
    for f in fields.values():
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in converted:
            raise ValueError(f"{key}: {name} needs its option {f.name!r}, e.g. {{name: {name}, {f.name}: ...}}")
    return converted


def convert(key: str, value: Any, annotation: Any) -> Any:
    """Check `value` against an annotation and return it, an integer given for a float as a float.

    Checked are int, float, bool, str, None, lists of these and unions of them; other annotations accept anything. A
    bool is no number, and a number is no string.

    Raises:
        ValueError: the value is of another type.
    """
    allowed = _members(annotation)
    if Any in allowed or (value is None and type(None) in allowed):
        return value
    kind: type = type(value)
    if kind in (bool, int, str) and kind in allowed:
        return value
    if float in allowed and isinstance(value, (int, float)) and kind is not bool:
        try:
            return float(value)
        except OverflowError:
            digits = int(int(value).bit_length() * 0.30103) + 1  # `str` refuses thousands of them
            raise ValueError(f"{key}: the number has {digits} digits, too many for a float") from None
    lists = [member for member in allowed if typing.get_origin(member) is list]
    if lists and isinstance(value, list):
        (item,) = typing.get_args(lists[0])
        return [convert(f"{key}[{index}]", element, item) for index, element in enumerate(value)]
    if not set(allowed) - set(lists) <= _SCALARS:
        return value
    hint = "; quote it" if str in allowed and kind in (bool, int, float) else ""
    raise ValueError(f"{key}: {shown(value)} is {_article(kind)}; it must be {type_name(annotation)}{hint}")


def type_name(annotation: Any) -> str:
    """Write a type as in messages and in `--help`: `int or null`, `list of str`, `any`."""
    if annotation is Any:
        return "any"
    if annotation is type(None):
        return "null"
    members = _members(annotation)
    if len(members) > 1:
        return " or ".join(type_name(member) for member in members)
    if typing.get_origin(annotation) is list:
        return f"list of {type_name(typing.get_args(annotation)[0])}"
    return getattr(annotation, "__name__", str(annotation))


def _members(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    return typing.get_args(annotation) if is_union else (annotation,)


def _article(kind: type) -> str:
    name = "null" if kind is type(None) else kind.__name__
    return name if name == "null" else f"an {name}" if name[0] in "aeiou" else f"a {name}"
