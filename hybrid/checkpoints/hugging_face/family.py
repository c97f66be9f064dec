"""A family of Hugging Face models: a `model_type` of config.json, read from a folder of JSON and safetensors alone.

To add one, subclass `Family` in a file of its own, say what its settings mean, and add a line to `FAMILIES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hybrid.checkpoints.hugging_face.settings import refuse_foreign_parts
from hybrid.checkpoints.hugging_face.their_config import TheirConfig
from hybrid.checkpoints.hugging_face.weight_files import stored_tensors
from hybrid.checkpoints.hugging_face.weights import TheirWeights
from hybrid.checkpoints.stored_model import StoredModel
from hybrid.data.tokenizers import SUBWORD_FILE, SubwordTokenizer
from hybrid.data.tokenizers.published import CONFIG, configured_ids
from hybrid.model.config import ModelConfig


@dataclass(frozen=True)
class Family(ABC):
    """Turns settings and weights of one `model_type` into ours."""

    model_type: ClassVar[str]
    models: ClassVar[str]  # what is published of it, for messages

    @abstractmethod
    def settings(self, theirs: TheirConfig, folder: Path) -> dict[str, Any]:
        """Return their settings by our keys, `model.vocab_size` among them. Raises ValueError for what we lack."""

    def recognises(self, folder: Path) -> bool:
        return model_type_of(folder) == self.model_type

    def read(self, folder: Path) -> StoredModel:
        theirs = TheirConfig.of(folder)
        refuse_foreign_parts(theirs)
        settings = self.settings(theirs, folder)
        model = model_of(settings)
        rows = settings["model.vocab_size"]
        _check_ids(model, rows)
        tensors = TheirWeights(stored_tensors(folder), model, rows, rows)
        return StoredModel(settings, _tokenizer(folder, rows), tensors)


def model_type_of(folder: Path) -> Any:
    """Return what the config.json of a folder calls its model; None if there is none, or it cannot be read."""
    try:
        return TheirConfig.of(folder).values.get("model_type")
    except ValueError:
        return None


def model_of(settings: Mapping[str, Any]) -> ModelConfig:
    """Return the options of the network. Raises ValueError for sizes that do not fit each other."""
    options = {key.removeprefix("model."): value for key, value in settings.items() if key.startswith("model.")}
    model = ModelConfig(**options)
    model.check()
    return model


def _check_ids(model: ModelConfig, rows: int) -> None:
    """Raise a ValueError for an id that the embedding has no row for."""
    ends = model.end_token_ids or []
    for key, ids in (("bos", [model.begin_token_id]), ("eos", ends), ("mask", [model.mask_token_id])):
        for number in ids:
            if number is not None and not 0 <= number < rows:
                raise ValueError(f"{CONFIG}: {key}_token_id {number} is outside of the vocabulary, 0 to {rows - 1}")


def _tokenizer(folder: Path, rows: int) -> SubwordTokenizer:
    """Read the tokenizer. Raises ValueError for one that is missing, or has more ids than the embedding has rows."""
    if not (folder / SUBWORD_FILE).is_file():
        raise ValueError(
            f"{SUBWORD_FILE} is missing; write it with transformers: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    tokenizer = SubwordTokenizer.from_file(folder)
    if tokenizer.vocab_size > rows:
        no_end = f", one of them added, because {CONFIG} has no eos_token_id"
        added = "" if configured_ids(folder, "eos_token_id") else no_end
        raise ValueError(
            f"{SUBWORD_FILE}: {tokenizer.vocab_size} ids{added}, are more than vocab_size of {CONFIG}, {rows}; are "
            "both of the same model?"
        )
    return tokenizer
