"""Tables of results: what a row says of its columns is what is shown, whatever the format."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import pytest

from hybrid.results.table import Table, cell, column, plus_minus, standard_error


@dataclass(frozen=True)
class Row:
    name: str = column("name")
    nats: list[float] | None = column("nats", partial(plus_minus, digits=2))
    solved: dict[int, float | None] = column("solved at {}, %", ".1f")
    steps: int = column("steps", default=1000)
    memory: float | None = column("MiB", round, optional=True, default=None)
    note: str = "not shown"


ROWS = [Row("a|b", [1.0, 3.0], {1: 50.0, 8: math.nan}), Row("c", None, {1: None, 8: 0.25}, steps=7)]


def test_a_row_says_how_it_is_shown() -> None:
    table = Table(ROWS, "Caption")
    assert table.columns == ["name", "nats", "solved at 1, %", "solved at 8, %", "steps"]
    assert table.cells == [["a|b", "2.00 ± 1.00", "50.0", "-", 1000], ["c", None, None, "0.2", 7]]
    assert table.records()[1] == {
        "name": "c",
        "nats": None,
        "solved at 1, %": None,
        "solved at 8, %": "0.2",
        "steps": 7,
    }
    assert table.markdown().splitlines() == [
        "Caption",
        "",
        "| name | nats | solved at 1, % | solved at 8, % | steps |",
        "| --- | --- | --- | --- | --- |",
        "| a\\|b | 2.00 ± 1.00 | 50.0 | - | 1,000 |",
        "| c | - | - | 0.2 | 7 |",
    ]
    assert table.text(left=(0,)).splitlines() == [
        "name         nats  solved at 1, %  solved at 8, %  steps",
        "--------------------------------------------------------",
        "a|b   2.00 ± 1.00            50.0               -  1,000",
        "c               -               -             0.2      7",
    ]


def test_an_optional_column_is_there_if_any_row_has_a_value() -> None:
    table = Table([ROWS[0], Row("d", None, {}, memory=3.6)])
    assert table.columns[-1] == "MiB" and [row[-1] for row in table.cells] == [None, 4]
    assert Table([]).columns == Table([]).cells == []


@pytest.mark.parametrize(
    "value, shown",
    [(None, "-"), (True, "yes"), (0.123456, "0.1235"), (12345.6, "12,346"), (1234567, "1,234,567"), ([1, 4], "[1, 4]")],
)
def test_cells(value: object, shown: str) -> None:
    assert cell(value) == shown


def test_errors_of_means_by_hand() -> None:
    assert standard_error([1.0, 2.0, 6.0]) == pytest.approx(math.sqrt(7 / 3)) and math.isnan(standard_error([1.0]))
    assert plus_minus([1.0, 2.0, 6.0], 2) == "3.00 ± 1.53" and plus_minus([0.5], 1, "+") == "+0.5"
