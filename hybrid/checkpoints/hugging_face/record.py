"""hybrid.json: all settings of a model that was written in the format of others, so that reading it guesses nothing.

Beside them, `data`: what is known of the data of its training, as model.json of a saved model has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybrid.options import shown
from hybrid.storage.atomic import write_json_atomic
from hybrid.storage.json_files import read_object

RECORD = "hybrid.json"
FORMAT = 1


def write_record(folder: Path, config: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> None:
    """Write the whole configuration, group by group, and what is known of the `data` of the training."""
    known = {} if data is None else {"data": data}
    write_json_atomic(folder / RECORD, {"format": FORMAT, "config": config, **known}, strict=True)


def recorded_settings(folder: Path) -> dict[str, Any]:
    """Return the settings by their keys, `{"model.dim": 64, "decoder": {...}, ...}`.

    But for `run.imports`: a folder that somebody else has written names no code that is run.

    Raises:
        ValueError: the file is not what `write_record` writes, or of a later version.
    """
    content = read_object(folder / RECORD)
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{RECORD}: format {shown(content.get('format'))} is not {FORMAT}, the one that is known; remove the file "
            "to read the folder as anybody's"
        )
    config = content.get("config")
    if not isinstance(config, Mapping) or not all(isinstance(group, Mapping) for group in config.values()):
        raise ValueError(f"{RECORD}: config {shown(config)} holds no groups of settings")
    names = [*config, *(key for group, values in config.items() if group != "decoder" for key in values)]
    if odd := [name for name in names if not name.isidentifier()]:  # it could spell another one, with its value
        raise ValueError(f"{RECORD}: config: {shown(odd[0])} is not the name of a setting")
    settings: dict[str, Any] = {}
    for group, values in config.items():
        single = {group: values}
        settings |= single if group == "decoder" else {f"{group}.{key}": value for key, value in values.items()}
    settings.pop("run.imports", None)
    return settings
