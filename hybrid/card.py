"""What a saved model says of itself: facts for programs, and a card for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hybrid.options import title

if TYPE_CHECKING:
    from hybrid.lm import LanguageModel


def facts_of(lm: LanguageModel) -> dict[str, Any]:
    """For model.json."""
    return {
        "parameters": lm.model.n_parameters(),
        "vocab_size": lm.model.vocab_size,
        "mask_token_id": lm.mask_token_id,
        "end_of_text": lm.tokenizer.end_of_text,
        "seq_len": lm.config.data.seq_len,
        "block_sizes": lm.block_sizes,
        "context": lm.config.model.context,
        "prediction": lm.config.model.prediction,
    }


def card_of(lm: LanguageModel, facts: Mapping[str, Any]) -> str:
    """For README.md."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return (
        f"# {lm.config.run.name}\n\nA semi-autoregressive hybrid language model, trained with `hybrid` on "
        f"{title(lm.config.data.corpus)}.\n\n| | |\n|---|---|\n{rows}\n\n```python\nimport hybrid\n\n"
        'lm = hybrid.load("this/folder")\nids = lm.generate("The ", 64).sequences[0]\n'
        "print(lm.tokenizer.decode(ids))\n```\n"
    )
