"""A chat template: how the messages of a conversation become text, in Jinja, as published tokenizers bring it along.

chat_template.jinja      the template
tokenizer_config.json    names of special tokens, such as "eos_token"; also the template, if it has no file of its own
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from hybrid.options import shown
from hybrid.storage.json_files import read_json

TEMPLATE_FILE, CONFIG_FILE, NAMES_FILE = "chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json"


@dataclass(frozen=True)
class ChatTemplate:
    """Attributes:
    source: the template.
    names: what it calls special tokens -> how they are spelled, e.g. {"eos_token": "<|im_end|>"}.
    """

    source: str
    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the template that lies beside a tokenizer; None if there is none.

        Raises:
            ValueError: it can't be read; names the file.
        """
        config = _object(folder / CONFIG_FILE)
        source = _text(folder / TEMPLATE_FILE)
        if source is None:
            source = _default(config.get("chat_template"), folder / CONFIG_FILE)
        if source is None:
            return None
        return cls(source, _names({**_object(folder / NAMES_FILE), **config}))

    def save(self, folder: Path) -> None:
        (folder / TEMPLATE_FILE).write_text(self.source, encoding="utf-8", newline="")
        (folder / CONFIG_FILE).write_text(json.dumps(dict(self.names), indent=1), encoding="utf-8")


def _text(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        return path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 (byte {error.start}); restore it or remove it") from None


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = read_json(path)
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{str(path)!r} is damaged ({reason}); restore it or remove it") from None
    return found if isinstance(found, dict) else {}


def _default(found: Any, path: Path) -> str | None:
    """Return the template; of several with names, the one called `default`."""
    if isinstance(found, list):
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
    if isinstance(found, dict):
        found = found.get("default")
    if found is not None and not isinstance(found, str):
        raise ValueError(
            f"{str(path)!r}: chat_template is {shown(found)}; it must be a text, or several by their names, of which "
            f"one is called default; correct it, or put the template into {TEMPLATE_FILE} beside it"
        )
    return found


def _names(config: Mapping[str, Any]) -> dict[str, str]:
    """Return what special tokens are called; each is a text, or an object with `content`."""
    names = {}
    for name, value in config.items():
        if isinstance(value, dict):
            value = value.get("content")
        if name.endswith("_token") and isinstance(value, str):
            names[name] = value
    return names
