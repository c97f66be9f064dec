"""The model card that a saved model carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def card_of(name: str, corpus: str, facts: Mapping[str, Any]) -> str:
    """Return the README.md of a saved model, as Markdown: what it was trained on, its facts, how to load it."""
    rows = "\n".join(f"| {fact} | {value} |" for fact, value in facts.items())
    return (
        f"# {name}\n\nA semi-autoregressive hybrid language model, trained with `hybrid` on "
        f"{corpus}.\n\n| | |\n|---|---|\n{rows}\n\n```python\nimport hybrid\n\n"
        'lm = hybrid.load("this/folder")\nids = lm.generate("The ", 64).sequences[0]\n'
        "print(lm.tokenizer.decode(ids))\n```\n"
    )
