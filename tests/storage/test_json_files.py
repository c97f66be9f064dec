"""JSON that can be read back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from hybrid.storage.atomic import write_json_atomic
from hybrid.storage.json_files import read_json, to_json


def test_json_has_no_nan(tmp_path):
    value = {"a": math.nan, "b": [1.0, -math.inf], "c": torch.tensor(2.5), "d": Path("x"), "e": torch.tensor([1, 2])}
    assert json.loads(to_json(value)) == {"a": None, "b": [1.0, None], "c": 2.5, "d": "x", "e": [1, 2]}
    with pytest.raises(ValueError, match=r"b\[1\]: -inf is not finite"):
        to_json({"b": value["b"]}, strict=True)
    write_json_atomic(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json")["a"] is None
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json: is not valid JSON"):
        read_json(tmp_path / "a.json")
