"""Read and write the YAML of configurations: the same in files, in overrides and in the dump of a run.

It is YAML with the implicit types of version 1.2: only true and false are booleans, `1e-3` is a number, and `no`, `on`,
`007`, `12:30` and `2024-01-01` are the strings that they look like. A key given twice is an error.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

from hybrid.options import nearest, shown

MOST_BYTES = 1_000_000
MOST_VALUES = 10_000
DEEPEST = 30
"""What a configuration is bounded by: the size of a file, its values (aliases written out), and lists in lists."""
_TOO_MANY = f"more than {MOST_VALUES:,} values (aliases count as what they stand for)"

_IMPLICIT = [
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?", "-+0123456789."),
    ("float", r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
]


class _Loader(yaml.SafeLoader):
    """Counts what it composes: a file of a few lines can mean a billion values, or a list in a list in a list ..."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own class attribute)

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.count = self.depth = 0
        self.sizes: dict[int, int] = {}  # values that a node stands for, with those of its aliases

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark
        self.count += 1
        if self.depth > DEEPEST:
            raise ComposerError(problem=f"nested deeper than {DEEPEST} levels", problem_mark=mark)
        if self.count > MOST_VALUES:
            raise ComposerError(problem=_TOO_MANY, problem_mark=mark)
        is_alias = self.check_event(yaml.AliasEvent)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if is_alias and id(node) not in self.sizes:
            raise ComposerError(problem="an alias of the value that it stands in", problem_mark=mark)
        if node is not None and not is_alias:
            self.sizes[id(node)] = self._size(node, mark)
        return node

    def _size(self, node: yaml.Node, mark: yaml.Mark) -> int:
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for entry in inner for part in (entry if isinstance(entry, tuple) else (entry,))]
        size = 1 + sum(self.sizes[id(part)] for part in parts)
        if size > MOST_VALUES:
            raise ComposerError(problem=_TOO_MANY, problem_mark=mark)
        return size

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind in ("binary", "timestamp", "set", "omap", "pairs"):
            raise yaml.constructor.ConstructorError(
                problem=f"!!{kind} is not plain data; write a text, a number, a list or a mapping",
                problem_mark=node.start_mark,
            )
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError):
            raise yaml.constructor.ConstructorError(
                problem=f"{shown(node.value)} is no {kind}", problem_mark=node.start_mark
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    problem="a list or a mapping cannot be a key", problem_mark=key_node.start_mark
                )
            if key_node.value in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {shown(key_node.value)} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_str(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Unicode's line breaks in escapes: PyYAML would write them as they are, and read them as spaces."""
    style = '"' if any(c in text for c in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_str)

for _name, _pattern, _first in _IMPLICIT:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), list(_first))


def parse(text: str, where: str) -> Any:
    """Parse the value that `text` writes.

    Raises:
        ValueError: a syntax error, in one line that begins with `where` and tells the line.
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"{where}: {len(text):,} characters are too many; a configuration has at most {MOST_BYTES:,}")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = _one_line(error.problem or error.context)
        raise ValueError(f"{where}{line}: not valid YAML: {problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid YAML: {_one_line(error)}") from None


def dump(value: Any) -> str:
    """Write the text that `parse` reads back as `value`, keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9)


def flow(value: list[Any] | dict[str, Any]) -> str:
    """Write a list or a mapping in one line, which `parse` reads back."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9)
    return text.strip()


def quote(text: str) -> str:
    """Write a string in one line, between double quotes."""
    return yaml.dump(text, Dumper=_Dumper, default_style='"', allow_unicode=True, width=10**9).strip()


def read(path: str | Path) -> dict[str, Any]:
    """Read the mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        ValueError: no such file (with the nearest name beside it), not readable, not YAML, not a mapping.
    """
    path = Path(path)
    named = shown(str(path), 200)
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        text = content.decode("utf-8").removeprefix("\ufeff")
    except FileNotFoundError:
        beside = [file.name for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ValueError(f"config file {named} does not exist{nearest(path.name, beside)}") from None
    except OSError as error:
        raise ValueError(f"config file {named} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"config file {named} is not UTF-8: {error.reason} at byte {error.start}") from None
    if len(content) > MOST_BYTES:
        raise ValueError(f"config file {named} has more than {MOST_BYTES:,} bytes, which no configuration needs")
    value = parse(text, str(path))
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {shown(value)} is a {type(value).__name__}; a config file is a mapping of groups")
    return value


def _one_line(text: Any) -> str:
    return " ".join(str(text).split())


def as_text(value: Any) -> str:
    """Write a value of JSON so that `parse` gives it back: an escape of YAML means a character, not half of a pair."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)
