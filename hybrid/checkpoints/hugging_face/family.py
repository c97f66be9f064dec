"""A family of Hugging Face models: a `model_type` of config.json, in both directions.

To add one, subclass `Family` in a file of its own and add a line to `FAMILIES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hybrid.checkpoints.hugging_face.names import LLAMA_NAMES, Names
from hybrid.checkpoints.hugging_face.reading import model_type_of, read_folder, read_settings
from hybrid.checkpoints.hugging_face.their_config import TheirConfig
from hybrid.checkpoints.stored_model import StoredModel
from hybrid.model.config import ModelConfig


@dataclass(frozen=True)
class Family(ABC):
    """Translates the settings of one `model_type`, and the names of its weights."""

    model_type: ClassVar[str]
    architecture: ClassVar[str]
    """Its class in transformers, or in the code published with it."""
    models: ClassVar[str]
    """What is published of it, for messages."""
    fixed: ClassVar[Mapping[str, Any]]
    """Options of our network that no key of its config.json changes."""

    names: ClassVar[Names] = LLAMA_NAMES
    """Their names of our weights."""

    @abstractmethod
    def to_ours(self, theirs: TheirConfig, folder: Path) -> dict[str, Any]:
        """Return the settings by our keys, besides `fixed`. Raises ValueError for what we do not have."""

    @abstractmethod
    def to_theirs(self, model: ModelConfig, vocab_size: int, block_size: int) -> dict[str, Any]:
        """Return what a config.json says besides the keys that all families have, of a model that lacks nothing."""

    def settings(self, theirs: TheirConfig, folder: Path) -> dict[str, Any]:
        return self.to_ours(theirs, folder) | {f"model.{key}": value for key, value in self.fixed.items()}

    def recognises(self, folder: Path) -> bool:
        return model_type_of(folder) == self.model_type

    def read(self, folder: Path) -> StoredModel:
        return read_folder(folder, lambda theirs: self.settings(theirs, folder), self.names)

    def read_settings(self, folder: Path) -> Mapping[str, Any]:
        return read_settings(TheirConfig.of(folder), folder, lambda theirs: self.settings(theirs, folder))

    def lacks(self, model: ModelConfig, block_sizes: Sequence[int]) -> list[str]:
        """Return what of a model the family cannot express; nothing if it can be written as one of it."""
        fixed = {"norm": "rms", "mlp": "swiglu", "latent": 0, **self.fixed}
        lacking = [
            f"model.{key}={_value(getattr(model, key))} (it has {_value(value)})"
            for key, value in fixed.items()
            if getattr(model, key) != value
        ]
        if model.prediction == "next_token" and model.context != "causal" and list(block_sizes) != [1]:
            sizes = ", ".join(map(str, block_sizes))
            lacking.append(f"model.context={model.context} at block size {sizes} (it has causal)")
        return lacking


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
