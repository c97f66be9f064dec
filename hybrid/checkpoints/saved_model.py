"""Write a model into a folder of its own: weights, configuration, tokenizer, and a card that says what it is.

FOLDER/
  model.safetensors   config.yaml   tokenizer/
  model.json          facts: its vocabulary, its block sizes, which checkpoint it is, on which data it was trained
  README.md           the card
  manifest.json
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hybrid.checkpoints.tensor_files import save_tensors
from hybrid.data.tokenizers import Tokenizer
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
        ValueError: the folder exists and holds something else.
        OSError: it could not be written.
    """
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
