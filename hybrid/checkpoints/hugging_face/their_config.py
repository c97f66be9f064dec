"""A config.json, or an object in it: each value is checked where it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.data.tokenizers.published import CONFIG
from hybrid.options import at_least, convert, shown
from hybrid.storage.json_files import read_object


@dataclass(frozen=True)
class TheirConfig:
    """Values by their keys; null counts as left out. `where` begins what is said of one that is wrong."""

    values: Mapping[str, Any]
    where: str = CONFIG

    @classmethod
    def of(cls, folder: Path) -> TheirConfig:
        return cls(read_object(folder / CONFIG))

    def get(self, key: str, kind: Any, default: Any = None) -> Any:
        """Return a value, `default` where there is none.

        Raises:
            ValueError: it is of another type.
        """
        value = self.values.get(key)
        return default if value is None else convert(f"{self.where}: {key}", value, kind)

    def required(self, key: str, kind: Any) -> Any:
        """Do as `get` for a value that must be there.

        Raises:
            ValueError: there is none.
        """
        value = self.get(key, kind)
        if value is None:
            raise ValueError(f"{self.where}: {key} is missing; add it as the model was published with it")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """Return a positive integer, which must be there if it has no default."""
        value = self.required(key, int) if default is None else self.get(key, int, default)
        at_least(f"{self.where}: {key}", value, 1)
        return value

    def object(self, key: str) -> TheirConfig:
        """Return the object that a key holds, empty where there is none."""
        value = self.values.get(key) or {}
        if not isinstance(value, Mapping):
            raise ValueError(f"{self.where}: {key}: {shown(value)} is no JSON object")
        return TheirConfig(value, f"{self.where}: {key}")

    def refuse(self, key: str, allowed: tuple[Any, ...], covered: str) -> None:
        """Raise a ValueError unless a key is left out or has one of these values; `covered` says what there is."""
        value = self.values.get(key)
        if value is not None and value not in allowed:
            raise ValueError(f"{self.where}: {key} {shown(value)}: not covered; {covered}")
