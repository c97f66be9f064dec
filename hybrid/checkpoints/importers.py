"""Open the folder of a model: one of ours, or one in another format that an importer of the table recognises.

To add a format: a frozen dataclass with `recognises` and `read`, and a line in `IMPORTERS`. Everything that loads a
model then takes such a folder: `hybrid.load`, `--checkpoint` (beside `--imports`) and `trainer.init_from`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.checkpoints.finding import find_checkpoint, list_checkpoints, reading
from hybrid.checkpoints.hugging_face import FAMILIES, refuse_unknown
from hybrid.checkpoints.identity import foreign_identity, identity_of, is_foreign
from hybrid.checkpoints.lookalikes import lookalike
from hybrid.checkpoints.recorded_data import recorded_data
from hybrid.checkpoints.stored_model import Importer, ReadsSettings, StoredModel
from hybrid.checkpoints.tensor_files import has_group, load_group
from hybrid.data.tokenizers import load_tokenizer
from hybrid.storage.folders import MANIFEST

IMPORTERS: dict[str, type[Importer]] = {**FAMILIES}
"""Importers by name; those of Hugging Face models by the `model_type` of their config.json."""


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
            return IMPORTERS[name]().read(folder), Origin(foreign_identity(folder), recorded_data(folder), folder, name)
    if os.path.lexists(path) and not _is_ours(path):
        if what := lookalike(path):
            raise ValueError(f"checkpoint: {path} {what}")
        if is_foreign(path):
            with reading(path):
                refuse_unknown(path)
    found = find_checkpoint(path).absolute()
    home = next((folder for folder in (found, found.parent.parent) if (folder / "config.yaml").is_file()), None)
    if home is None:
        lacks = (
            "config.json has no model_type; add the one that the model was published with"
            if is_foreign(found)
            else "has no config.yaml beside it; give the run folder that it belongs to"
        )
        raise ValueError(
            f"checkpoint: {found}: {lacks}. No importer recognises it (there are: {', '.join(IMPORTERS) or 'none'}; "
            "--imports registers those of a module)"
        )
    tokenizer = load_tokenizer(home / "tokenizer")
    with reading(found):
        tensors = load_group(found, "ema" if has_group(found, "ema") else "model")
    return StoredModel(home / "config.yaml", tokenizer, tensors), Origin(identity_of(found), recorded_data(home), found)


def imported_settings(folder: Path) -> Mapping[str, Any] | None:
    """Return the settings, by our keys, of a folder in another format; None: no importer recognises it.

    Raises:
        ValueError: it cannot be read; one line that names it.
    """
    name = importer_of(folder)
    if name is None:
        return None
    importer = IMPORTERS[name]()
    with reading(folder):
        if isinstance(importer, ReadsSettings):
            return importer.read_settings(folder)
        settings = importer.read(folder).settings
    assert isinstance(settings, Mapping)
    return settings


def importer_of(folder: Path) -> str | None:
    """Return the name of the first importer that recognises a folder; None if there is none, or the folder is ours."""
    if not os.path.isdir(folder) or _is_ours(folder):
        return None
    return next((name for name, importer in IMPORTERS.items() if importer().recognises(folder)), None)


def _is_ours(folder: Path) -> bool:
    """Return whether a folder is a run, a checkpoint or a saved model; a manifest beside a config.json says nothing."""
    has_manifest = os.path.exists(folder / MANIFEST) and not is_foreign(folder)
    return (
        has_manifest
        or any(os.path.exists(folder / name) for name in ("config.yaml", "checkpoints"))
        or bool(list_checkpoints(folder))
    )
