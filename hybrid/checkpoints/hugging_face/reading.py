"""Read a folder of a family: what all of them have in common."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hybrid.checkpoints.hugging_face.names import Names
from hybrid.checkpoints.hugging_face.record import RECORD, recorded_settings
from hybrid.checkpoints.hugging_face.settings import refuse_foreign_parts
from hybrid.checkpoints.hugging_face.their_config import TheirConfig
from hybrid.checkpoints.hugging_face.weight_files import stored_tensors
from hybrid.checkpoints.hugging_face.weights import TheirWeights
from hybrid.checkpoints.stored_model import StoredModel
from hybrid.data.tokenizers import SUBWORD_FILE, SubwordTokenizer, Tokenizer, load_tokenizer
from hybrid.data.tokenizers.published import CONFIG, configured_ids
from hybrid.model.config import ModelConfig
from hybrid.options import convert


def model_type_of(folder: Path) -> Any:
    """Return what the config.json of a folder calls its model; None if there is none, or it cannot be read."""
    try:
        return TheirConfig.of(folder).values.get("model_type")
    except ValueError:
        return None


def read_folder(folder: Path, settings_of: Callable[[TheirConfig], dict[str, Any]], names: Names) -> StoredModel:
    """Read a folder; one that has a record of ours is what the record says.

    Args:
        settings_of: translates a config.json to the values of our keys, `model.vocab_size` among them.
        names: theirs, of our weights.

    Raises:
        ValueError: what is there is not covered, damaged, or does not fit together; one line.
    """
    theirs, is_ours = TheirConfig.of(folder), _has_record(folder)
    settings = read_settings(theirs, folder, settings_of)
    model, rows = model_of(settings), theirs.size("vocab_size")
    check_ids(model, rows)
    tokenizer = load_tokenizer(folder) if is_ours else _their_tokenizer(folder)
    n_ids = model.vocab_size or tokenizer.vocab_size
    if max(tokenizer.vocab_size, n_ids) > rows:
        no_end = f", one of them added, because {CONFIG} has no eos_token_id"
        added = "" if is_ours or configured_ids(folder, "eos_token_id") else no_end
        raise ValueError(
            f"{SUBWORD_FILE}: {max(tokenizer.vocab_size, n_ids)} ids{added}, are more than vocab_size of {CONFIG}, "
            f"{rows}; are both of the same model?"
        )
    return StoredModel(settings, tokenizer, TheirWeights(stored_tensors(folder), names, model, rows, n_ids))


def read_settings(
    theirs: TheirConfig, folder: Path, settings_of: Callable[[TheirConfig], dict[str, Any]]
) -> dict[str, Any]:
    """Return the values of our keys; those of a record of ours, where there is one. Errors are those of `read_folder`
    that files of JSON alone can cause."""
    refuse_foreign_parts(theirs)
    return recorded_settings(folder) if _has_record(folder) else settings_of(theirs)


def _has_record(folder: Path) -> bool:
    return (folder / RECORD).is_file()


def model_of(settings: Mapping[str, Any]) -> ModelConfig:
    """Return the options of the network. Raises ValueError for sizes that do not fit each other."""
    hints = typing.get_type_hints(ModelConfig)
    options = {key.removeprefix("model."): value for key, value in settings.items() if key.startswith("model.")}
    model = ModelConfig(
        **{name: convert(f"model.{name}", options[name], hints[name]) for name in hints & options.keys()}
    )
    model.check()
    return model


def check_ids(model: ModelConfig, rows: int) -> None:
    """Raise a ValueError for an id that the embedding has no row for."""
    ends = model.end_token_ids or []
    for key, ids in (("bos", [model.begin_token_id]), ("eos", ends), ("mask", [model.mask_token_id])):
        for number in ids:
            if number is not None and not 0 <= number < rows:
                raise ValueError(f"{CONFIG}: {key}_token_id {number} is outside of the vocabulary, 0 to {rows - 1}")


def _their_tokenizer(folder: Path) -> Tokenizer:
    if not (folder / SUBWORD_FILE).is_file():
        raise ValueError(
            f"{SUBWORD_FILE} is missing; write it with transformers: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    return SubwordTokenizer.from_file(folder)
