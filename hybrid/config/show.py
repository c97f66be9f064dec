"""Write a configuration down: the dump of a run folder, hparams, differences, and the text of `--help`."""

from __future__ import annotations

import dataclasses
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from hybrid.config import dialect
from hybrid.config.schema import BACKENDS, SPECS, Config, Key, choices, groups, known_keys, table, value_of
from hybrid.options import is_option, type_name


def to_yaml(config: Config) -> str:
    """Write the whole configuration as YAML; `load_config` of it gives an equal one."""
    return dialect.dump(dataclasses.asdict(config))


def flatten(config: Config) -> dict[str, Any]:
    """Dotted key -> bool, number or string (what TensorBoard's hparams take); null and lists become their YAML.

    A spec gives its name under its own key and its options below: `decoder: margin`, `decoder.steps: 8`.
    """
    return {name: _scalar(value) for name, value in _values(config)}


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value in a, value in b) where they differ; an option that one of them lacks is None there."""
    left, right = dict(_values(a)), dict(_values(b))
    names = dict.fromkeys((*left, *right))
    pairs = {name: (left.get(name), right.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] or type(pair[0]) is not type(pair[1])}


def describe() -> str:
    """Write the text of `--help`: every key with type, default, doc and choices, and the entries of every table."""
    blocks = []
    by_group: dict[str, list[Key]] = {group: [] for group in groups()}
    for key in known_keys().values():
        by_group[key.name.split(".")[0]].append(key)
    for group, members in by_group.items():
        lines = [f"{group}:"]
        for key in members:
            lines += _describe_key(key)
            if key.name in SPECS:
                lines += _describe_entries(table(SPECS[key.name]))
        blocks.append("\n".join(lines))
    backends = _describe_entries(table(BACKENDS), with_options=False)
    blocks.append("\n".join(["attention backends (model.attention):", *backends]))
    return "\n\n".join(blocks)


def describe_table(title: str, entries: Mapping[str, type]) -> str:
    """Write a part of a command's `--help`: the entries of a table with their options."""
    return "\n".join([f"{title}:", *_describe_entries(entries)])


def _values(config: Config) -> Iterator[tuple[str, Any]]:
    for name in known_keys():
        value = value_of(config, name)
        if name in SPECS and isinstance(value, dict):
            yield name, value.get("name")
            yield from ((f"{name}.{option}", inner) for option, inner in value.items() if option != "name")
        else:
            yield name, value


def _scalar(value: Any) -> bool | int | float | str:
    return value if isinstance(value, (bool, int, float, str)) else inline(value)


def inline(value: Any) -> str:
    """Write a value in one line of YAML, as it may be given in an override."""
    if value is None:
        return "null"
    if isinstance(value, (list, dict)):
        return dialect.flow(value)
    if not isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, str) and not value.isprintable():
        return dialect.quote(value)
    return dialect.dump([value]).removeprefix("- ").strip()


def _describe_key(key: Key) -> list[str]:
    head = f"  {key.name}={inline(key.default)}"
    kind = "any" if key.annotation is Any or key.name in SPECS else type_name(key.annotation)
    allowed = choices(key)
    note = "" if allowed is None else f" [{' | '.join(allowed)}]"
    return [f"{head}  ({kind})" if kind != "any" else head, *_wrapped(f"{key.doc}{note}", "      ")]


def _describe_entries(entries: Mapping[str, type], with_options: bool = True) -> list[str]:
    """List each entry with the first paragraph of its docstring, then the options that a spec may give."""
    lines = []
    for name, entry in entries.items():
        doc = " ".join((entry.__doc__ or "").strip().split("\n\n")[0].split())
        # A dataclass without a docstring has its signature for one.
        doc = "" if doc.startswith(f"{entry.__name__}(") else doc
        lines += _wrapped(f"{name}: {doc}" if doc else name, "      ")
        if with_options:
            hints = typing.get_type_hints(entry)
            for f in dataclasses.fields(entry):  # pyright: ignore[reportArgumentType]
                lines += _wrapped(_describe_option(f, hints[f.name]), "          ") if is_option(f) else []
    return lines


def _describe_option(f: dataclasses.Field[Any], annotation: Any) -> str:
    default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
    shown = "(required)" if default is dataclasses.MISSING else f"={inline(default)}"
    allowed = f.metadata.get("choices")
    note = f" [{' | '.join(allowed)}]" if allowed else ""
    return f"{f.name}{shown} ({type_name(annotation)}) {f.metadata.get('doc', '')}{note}".rstrip()


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False)
