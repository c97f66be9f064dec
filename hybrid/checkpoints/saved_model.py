"""Write a model into a folder of its own: weights, configuration, tokenizer, and a card that says what it is.

FOLDER/
  model.safetensors   config.yaml   tokenizer/
  model.json          facts: its vocabulary, its block sizes, which checkpoint it is, on which data it was trained
  README.md           the card
  manifest.json
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hybrid.checkpoints.identity import identity_at
from hybrid.checkpoints.importers import Origin, open_model
from hybrid.checkpoints.module_state import module_tensors
from hybrid.checkpoints.tensor_files import save_tensors
from hybrid.data.tokenizers import TOKENIZERS, Tokenizer
from hybrid.model import Transformer
from hybrid.model.fused import is_fused
from hybrid.options import pick
from hybrid.storage.atomic import write_json_atomic
from hybrid.storage.folders import new_folder


def save_model(
    folder: Path, tensors: Mapping[str, Tensor], config: str, tokenizer: Tokenizer, facts: Mapping[str, Any],
    made_from: Mapping[str, Any], card: str,
) -> None:  # fmt: skip
    """Write a model into a new folder, atomically.

    Args:
        config: the whole configuration, as YAML.
        facts: what model.json says of the model; `made_from`: of its checkpoint and its data.
        card: README.md.

    Raises:
        ValueError: the folder exists and holds something else, or nothing could read the tokenizer back.
        OSError: it could not be written.
    """
    pick("save: kind of the tokenizer", tokenizer.kind, TOKENIZERS)
    with new_folder(folder) as temporary:
        save_tensors(tensors, temporary / "model.safetensors")
        (temporary / "config.yaml").write_text(config, encoding="utf-8")
        tokenizer.save(temporary / "tokenizer")
        write_json_atomic(temporary / "model.json", {**facts, **made_from})
        (temporary / "README.md").write_text(card, encoding="utf-8")


def card_of(name: str, corpus: str, facts: Mapping[str, Any]) -> str:
    """Return the README.md of a saved model, as Markdown: what it was trained on, its facts, how to load it."""
    rows = "\n".join(f"| {fact} | {value} |" for fact, value in facts.items())
    return (
        f"# {name}\n\nA semi-autoregressive hybrid language model, trained with `hybrid` on "
        f"{corpus}.\n\n| | |\n|---|---|\n{rows}\n\n```python\nimport hybrid\n\n"
        'lm = hybrid.load("this/folder")\nids = lm.generate("The ", 64).sequences[0]\n'
        "print(lm.tokenizer.decode(ids))\n```\n"
    )


def facts_of(model: Transformer, tokenizer: Tokenizer, seq_len: int, block_sizes: Sequence[int]) -> dict[str, Any]:
    """Return what model.json says of a model."""
    return {
        "parameters": model.n_parameters(),
        "vocab_size": model.vocab_size,
        "mask_token_id": model.mask_token_id,
        "end_of_text": tokenizer.end_of_text,
        "seq_len": seq_len,
        "block_sizes": block_sizes,
        "context": model.config.context,
        "prediction": model.config.prediction,
    }


def taken_for(origin: Origin, model: Transformer, seq_len: int, block_sizes: Sequence[int]) -> str:
    """Say in a line what a folder in another format was taken for."""
    c, ends = model.config, " or ".join(map(str, sorted(model.end_token_ids)))
    begin = f"begin {model.begin_token_id}, " if c.begin else ""
    return (
        f"{origin.importer}, {model.n_parameters():,} parameters, {c.prediction}, {c.context}, block size "
        f"{', '.join(map(str, block_sizes))}, context {seq_len:,}, {model.vocab_size:,} ids ({begin}end {ends}, MASK "
        f"{model.mask_token_id})"
    )


def weights_as_trained(model: Transformer, origin: Origin) -> Mapping[str, Tensor]:
    """Return the weights of a model. One that has generated has fused them, so they are read once more.

    Raises:
        ValueError: the folder that they were read from has changed since.
    """
    if not is_fused(model):
        return module_tensors(model)
    assert origin.folder is not None, "a model that was not loaded is never fused in place"
    if identity_at(origin.folder) != origin.checkpoint:
        raise ValueError(
            f"save: the weights were loaded from {origin.folder}, which has changed since; load them again"
        )
    dtype = model.embedding.weight.dtype  # of the weights before they were fused
    return {name: tensor.to(dtype) for name, tensor in open_model(origin.folder)[0].tensors.items()}
