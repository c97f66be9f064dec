"""Open the folder of a model: one of ours, or one in another format that an importer of the table recognises.

To add a format: a frozen dataclass with `recognises` and `read`, and a line in `IMPORTERS`. Everything that loads a
model then takes such a folder: `hybrid.load`, `--checkpoint` (beside `--imports`) and `trainer.init_from`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from hybrid.checkpoints.finding import find_checkpoint, list_checkpoints, reading
from hybrid.checkpoints.identity import foreign_identity, identity_of
from hybrid.checkpoints.recorded_data import recorded_data
from hybrid.checkpoints.tensor_files import has_group, load_group
from hybrid.data.tokenizers import Tokenizer, load_tokenizer
from hybrid.storage.folders import MANIFEST


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


IMPORTERS: dict[str, type[Importer]] = {}


@dataclass(frozen=True)
class Origin:
    """Where a model was loaded from.

    Attributes:
        checkpoint: its identity; None: not known.
        data: what its folder says of the data of its training; None: nothing.
        folder: of the checkpoint; None: the model was not loaded.
        importer: the name of the importer that has read it; None: it is in our own format.
    """

    checkpoint: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    folder: Path | None = None
    importer: str | None = None


def open_model(path: Path) -> tuple[StoredModel, Origin]:
    """Open the model that a path means: a run, a checkpoint, a saved model, or a folder in another format.

    Averaged weights (EMA) are taken where there are any.

    Raises:
        ValueError: nothing usable is there; one line that says what to do.
    """
    name = importer_of(path)
    if name is not None:
        folder = path.absolute()
        with reading(folder):
            return IMPORTERS[name]().read(folder), Origin(foreign_identity(folder), None, folder, name)
    found = find_checkpoint(path).absolute()
    home = next((folder for folder in (found, found.parent.parent) if (folder / "config.yaml").is_file()), None)
    if home is None:
        raise ValueError(
            f"checkpoint: {found} has no config.yaml beside it; give the run folder that it belongs to. No importer "
            f"recognises it (there are: {', '.join(IMPORTERS) or 'none'}; --imports registers those of a module)"
        )
    tokenizer = load_tokenizer(home / "tokenizer")
    with reading(found):
        tensors = load_group(found, "ema" if has_group(found, "ema") else "model")
    return StoredModel(home / "config.yaml", tokenizer, tensors), Origin(identity_of(found), recorded_data(home), found)


def importer_of(folder: Path) -> str | None:
    """Return the name of the first importer that recognises a folder; None if there is none, or the folder is ours."""
    ours = ("config.yaml", MANIFEST, "checkpoints")
    if not os.path.isdir(folder) or any((folder / name).exists() for name in ours) or list_checkpoints(folder):
        return None
    return next((name for name, importer in IMPORTERS.items() if importer().recognises(folder)), None)
