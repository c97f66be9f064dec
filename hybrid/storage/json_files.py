"""Strict JSON: what is written can be read back, and what cannot be read is one line that names the file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybrid.options import shown


def to_json(value: Any, *, strict: bool = False, indent: int | None = None) -> str:
    """Return the JSON text of `value`; numbers of numpy and torch become plain, paths and other objects their `str`.

    JSON has no NaN and no infinity. They become null, or, if `strict` (for what must come back as it was), an error.

    Raises:
        ValueError: `strict`, and a number is not finite or an object is none of JSON; the message names where it is.
    """
    return json.dumps(_plain(value, strict, ""), indent=indent, allow_nan=False, ensure_ascii=False)


def _plain(value: Any, strict: bool, where: str) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, strict, f"{where}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, strict, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        if strict:
            raise ValueError(f"{where or 'value'}: {value!r} is not finite and JSON cannot hold it; leave it out")
        return None
    if hasattr(value, "tolist"):  # arrays, tensors, and their scalars
        return _plain(value.tolist(), strict, where)
    if strict and not isinstance(value, Path):
        raise ValueError(f"{where or 'value'}: a {type(value).__name__} would not come back from JSON as it was")
    return str(value)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        ValueError: the file is missing or is not JSON, or is nested deeper than Python can follow.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: is missing") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except RecursionError:
        raise ValueError(f"{path}: is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path}: is not valid JSON: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ValueError: as `read_json`, or it holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds {shown(content)} instead of a JSON object")
    return content
