"""What an experiment remembers from one start to the next, as long as it is made from the same settings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.config import Config, data_block_sizes, flatten, load_config
from hybrid.data.preparing import prepare
from hybrid.device import resolve_device
from hybrid.options import shown
from hybrid.results.environment import environment
from hybrid.storage.atomic import write_json_atomic
from hybrid.storage.json_files import read_json, to_json


@dataclass(frozen=True)
class Remembered:
    """What a file holds: positive numbers by name, and what they were made from."""

    made_from: dict[str, Any]
    values: dict[str, float]

    @classmethod
    def read(cls, file: Path) -> Remembered:
        """Read a file; a ValueError says that it is damaged, or not from what its numbers were made."""
        content = read_json(file)
        if not isinstance(content, dict) or not isinstance(content.get("made_from"), dict):
            raise ValueError(f"{file}: does not say from which settings it was made; choose another --folder")
        values = content.get("values")
        if not isinstance(values, dict) or not all(type(v) in (int, float) and v > 0 for v in values.values()):
            raise ValueError(f"{file}: holds {shown(values)} instead of positive numbers by name; remove the file")
        return cls(content["made_from"], values)

    def write(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(file, dataclasses.asdict(self), strict=True)


def remembered(
    file: Path, made_from: Mapping[str, Any], make: Callable[[dict[str, float]], dict[str, float]]
) -> dict[str, float]:
    """Read the numbers of a file, make those that are missing, and write them there.

    Args:
        make: the numbers that are in the file -> all that are wanted.

    Raises:
        ValueError: those in the file were made from something else, or do not say from what.
    """
    wanted: dict[str, Any] = json.loads(to_json(made_from))
    kept: dict[str, float] = {}
    if file.is_file():
        before = Remembered.read(file)
        refuse_other_settings(file, before.made_from, wanted, remove=file)
        kept = before.values
    values = make(kept)
    if values != kept:
        Remembered(wanted, values).write(file)
    return values


def refuse_other_settings(file: Path, was: Mapping[str, Any], wanted: Mapping[str, Any], remove: Path) -> None:
    """Raise a ValueError if what is there was made from other settings than are wanted now; `remove` says what to do.

    Settings that came after it was made count as having been at their defaults.
    """
    wanted, defaults = (json.loads(to_json(known)) for known in (wanted, flatten(load_config(None, []))))
    was = {**{key: defaults[key] for key in wanted if key in defaults}, **was}
    changed = sorted(key for key in {*was, *wanted} if was.get(key) != wanted.get(key))
    if changed:
        key = changed[0]
        raise ValueError(
            f"{file}: was made with {key} = {shown(was.get(key))}, and this experiment wants "
            f"{shown(wanted.get(key))}; choose another --folder, or remove {remove}"
        )


def basis(config: Config) -> dict[str, Any]:
    """Tell what numbers that hold for several runs are made from.

    It is their settings but for names and seeds, the text and the tokenizer behind these, and the machine.
    """
    facts = environment(resolve_device(config.run.device))
    data = prepare(config.data, block_sizes=data_block_sizes(config)).description
    own = {key: value for key, value in flatten(config).items() if not key.startswith(("run.", "data.cache_dir"))}
    machine = {name: facts[name] for name in ("processor", "device", "threads")}
    text = {name: data[name] for name in ("corpus_sha256", "tokenizer_fingerprint")}
    return {**own, **machine, **text, "torch": facts["libraries"]["torch"]}
