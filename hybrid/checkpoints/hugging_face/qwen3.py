"""Qwen3, the dense ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.checkpoints.hugging_face.family import Family
from hybrid.checkpoints.hugging_face.settings import autoregressive, block_settings
from hybrid.checkpoints.hugging_face.their_config import TheirConfig


def qwen3_block(theirs: TheirConfig) -> dict[str, Any]:
    """Return sizes, norms of queries and keys among them, and positions, by our keys."""
    theirs.refuse("attention_bias", (False,), "no bias on what the attention writes")
    width = theirs.size("head_dim", 128)
    return block_settings(theirs) | {"model.qk_norm": True, "model.head_dim": width}


@dataclass(frozen=True)
class Qwen3(Family):
    """Norms of queries and keys, heads of a width of their own."""

    model_type = "qwen3"
    models = "Qwen3"

    def settings(self, theirs: TheirConfig, folder: Path) -> dict[str, Any]:
        return qwen3_block(theirs) | autoregressive(folder)
