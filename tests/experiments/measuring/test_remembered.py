"""Numbers that are remembered are those of the same settings, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybrid.config import flatten, load_config
from hybrid.experiments.measuring.remembered import Remembered, remembered


def test_what_is_remembered_is_not_made_again(tmp_path: Path) -> None:
    file, made_from = tmp_path / "runs" / "costs.json", {"model.dim": 16, "threads": 1}
    assert remembered(file, made_from, lambda kept: {**kept, "a": 0.5}) == {"a": 0.5}
    assert remembered(file, made_from, lambda kept: kept) == {"a": 0.5}
    assert remembered(file, made_from, lambda kept: {**kept, "b": 2.0}) == {"a": 0.5, "b": 2.0}
    assert Remembered.read(file) == Remembered(made_from, {"a": 0.5, "b": 2.0})


def test_numbers_of_other_settings_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    remembered(file, {"model.dim": 16}, lambda kept: {"a": 0.5})
    with pytest.raises(ValueError, match=r"costs.json: was made with model.dim = 16, and .* wants 32; choose another"):
        remembered(file, {"model.dim": 32}, lambda kept: kept)


def test_a_setting_that_came_later_had_its_default_before(tmp_path: Path) -> None:
    file, now = tmp_path / "costs.json", flatten(load_config(None, []))
    before = {key: value for key, value in now.items() if key != "objective.name"}
    remembered(file, before, lambda kept: {"a": 0.5})
    assert remembered(file, now, lambda kept: kept) == {"a": 0.5}
    with pytest.raises(ValueError, match=r"was made with objective\.name"):
        remembered(file, {**now, "objective.name": "other"}, lambda kept: kept)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"a": 0.5}, "does not say from which settings"),
        ({"made_from": {}, "values": {"a": "x"}}, "instead of positive numbers"),
        ({"made_from": {}, "values": {"a": 0.0}}, "instead of positive numbers"),
        ({"made_from": {}}, "instead of positive numbers"),
    ],
)
def test_a_damaged_file_is_refused(content: dict, message: str, tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        remembered(file, {}, lambda kept: kept)
