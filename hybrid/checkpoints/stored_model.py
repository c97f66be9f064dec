"""What a folder holds of a model, and what reads the folders of another format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from hybrid.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class StoredModel:
    """What a folder holds of a model.

    Attributes:
        settings: the config.yaml; of another format the values of our keys, `{"model.dim": 64, "data.seq_len": 128,
            "objective.block_size": 4, ...}`, where those that are left out have their defaults.
        tokenizer: its `vocab_size` is the number of rows of the embedding, MASK (`model.mask_token_id`) and padding
            among them if they are.
        tensors: the weights by our names, of any floating type. Each is asked for when its turn has come, twice: a
            mapping that reads from the file then keeps one in memory at a time.
    """

    settings: Path | Mapping[str, Any]
    tokenizer: Tokenizer
    tensors: Mapping[str, Tensor]


class Importer(Protocol):
    """Reads the models of another format, from safetensors and JSON alone: nothing is unpickled, no code is run."""

    def recognises(self, folder: Path) -> bool:
        """Return whether a folder is of this format; quick, and never an error."""
        ...

    def read(self, folder: Path) -> StoredModel:
        """Return what the folder holds. Raises ValueError, in one line, for what it cannot mean."""
        ...


@runtime_checkable
class ReadsSettings(Protocol):
    """An importer that also has the settings alone, for which neither tokenizer nor weights are opened."""

    def read_settings(self, folder: Path) -> Mapping[str, Any]:
        """Return the `settings` of what `read` returns; errors are the same."""
        ...
