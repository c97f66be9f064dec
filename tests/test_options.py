"""Declaring options, and building table entries from specs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest

from hybrid.options import at_least, bare, build, convert, nearest, option, pick, shown, type_name


@dataclass(frozen=True)
class Plain:
    """No options."""


@dataclass(frozen=True)
class Stepped:
    steps: int = option(4, "steps")
    rate: float | None = option(None, "rate")
    mode: str = option("a", "mode", ("a", "b"))
    sizes: list[int] = option([1], "sizes")
    anything: Any = option(None, "anything")

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)


@dataclass(frozen=True)
class Needy:
    power: float = dataclasses.field(metadata={"doc": "no default"})


TABLE = {"plain": Plain, "stepped": Stepped, "needy": Needy}


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("plain", Plain()),
        ({"name": "plain"}, Plain()),
        ({"name": "stepped", "steps": 8}, Stepped(steps=8)),
        ({"name": "stepped", "rate": 1}, Stepped(rate=1.0)),
        ({"name": "stepped", "rate": None, "mode": "b"}, Stepped(mode="b")),
        ({"name": "stepped", "sizes": [2, 3], "anything": {"x": 1}}, Stepped(sizes=[2, 3], anything={"x": 1})),
        ({"name": "needy", "power": 2}, Needy(2.0)),
    ],
)
def test_a_spec_builds_its_entry(spec: Any, expected: Any) -> None:
    assert build(TABLE, spec, "decoder") == expected


def test_an_instance_passes_through() -> None:
    mine = Stepped(steps=3)
    assert build(TABLE, mine, "decoder") is mine
    assert build({}, mine, "decoder") is mine


@pytest.mark.parametrize(
    "spec, words",
    [
        ("steped", ["decoder", "'steped'", "needy, plain, stepped", "did you mean 'stepped'"]),
        ("PLAIN", ["did you mean 'plain'"]),
        ("mine", ["; one of your own needs run.imports=MODULE (train.py) or --imports MODULE (other commands)"]),
        (None, ["decoder", "None", "plain"]),
        (3, ["decoder", "3", "plain"]),
        (True, ["decoder", "True"]),
        (["plain"], ["decoder", "['plain']"]),
        ({"steps": 3}, ["decoder", "no 'name'", "plain"]),
        ({"name": 3}, ["decoder", "3"]),
        ({"name": "plain", "steps": 3}, ["decoder.steps", "plain has no options"]),
        ({"name": "stepped", "stepz": 3}, ["decoder.stepz", "3", "steps, rate", "did you mean 'steps'"]),
        ({"name": "stepped", "steps": "x"}, ["decoder.steps", "'x'", "int"]),
        ({"name": "stepped", "steps": 2.0}, ["decoder.steps", "2.0", "int"]),
        ({"name": "stepped", "steps": True}, ["decoder.steps", "True", "int"]),
        ({"name": "stepped", "steps": 0}, ["decoder.steps", "0", "at least 1"]),
        ({"name": "stepped", "rate": "fast"}, ["decoder.rate", "'fast'", "float or null"]),
        ({"name": "stepped", "mode": "c"}, ["decoder.mode", "'c'", "a, b"]),
        ({"name": "stepped", "mode": 1}, ["decoder.mode", "1", "str", "quote it"]),
        ({"name": "stepped", "sizes": [1, "x"]}, ["decoder.sizes[1]", "'x'", "int"]),
        ({"name": "stepped", "sizes": 4}, ["decoder.sizes", "4", "list of int"]),
        ({"name": "needy"}, ["decoder", "needy", "'power'"]),
    ],
)
def test_a_bad_spec_is_one_line_that_names_key_value_and_choices(spec: Any, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        build(TABLE, spec, "decoder")
    text = str(caught.value)
    assert "\n" not in text
    assert [word for word in words if word not in text] == [], text


def test_defaults_are_not_shared() -> None:
    @dataclass
    class Holder:
        nested: Any = option([{"a": [1]}], "nested")

    first = Holder()
    first.nested[0]["a"].append(2)
    assert Holder().nested == [{"a": [1]}]


def test_pick_and_nearest() -> None:
    assert pick("key", "a", ["a", "b"]) == "a"
    with pytest.raises(ValueError, match=r"key: 'x' is not one of a, b$"):
        pick("key", "x", ["b", "a"])
    assert nearest("MARGN", ["margin", "entropy"]) == " (did you mean 'margin'?)"
    assert nearest("zzz", ["margin"]) == ""


def test_at_least_refuses_nan() -> None:
    at_least("key", 1, 1)
    for value in (0, float("nan")):
        with pytest.raises(ValueError, match="key"):
            at_least("key", value, 1)


def test_convert_leaves_unknown_annotations_alone() -> None:
    value = {"a": 1}
    assert convert("key", value, dict[str, int]) is value
    assert convert("key", 1, float) == 1.0 and type(convert("key", 1, float)) is float
    assert convert("key", 1, int | float) == 1 and type(convert("key", 1, int | float)) is int


def test_convert_refuses_an_integer_beyond_the_floats() -> None:
    with pytest.raises(ValueError, match="key: the number has 401 digits"):
        convert("key", 10**400, float)


def test_type_names() -> None:
    assert type_name(int | None) == "int or null"
    assert type_name(list[str]) == "list of str"
    assert type_name(Any) == "any"


def test_a_message_shows_a_value_of_any_size_in_a_bounded_length():
    assert shown("short") == "'short'"
    assert shown("x" * 100_000) == "'" + "x" * 79 + "... (100,002 characters)"
    assert shown(10**5000) == "<a int too large to show>"


def test_a_text_of_any_size_is_cut_the_same_way() -> None:
    assert bare("a  b\n c") == "a b c" and shown("a  b\n c") == r"'a  b\n c'"
    assert bare("x" * 100) == "x" * 100
    assert bare("x" * 101) == "x" * 80 + "... (101 characters)"
    assert shown("x" * 99) == "'" + "x" * 79 + "... (101 characters)"
    assert bare(ValueError("x" * 1000), 200) == "x" * 180 + "... (1,000 characters)"
