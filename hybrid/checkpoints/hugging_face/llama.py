"""Llama 2 and 3.x, SmolLM2, and whatever else calls itself `llama`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.checkpoints.hugging_face.family import Family
from hybrid.checkpoints.hugging_face.settings import autoregressive, block_settings
from hybrid.checkpoints.hugging_face.their_config import TheirConfig


@dataclass(frozen=True)
class Llama(Family):
    """No norm of queries and keys, no bias in the attention."""

    model_type = "llama"
    models = "Llama 2 and 3, SmolLM2"

    def settings(self, theirs: TheirConfig, folder: Path) -> dict[str, Any]:
        theirs.refuse("attention_bias", (False,), "no bias on what the attention writes")
        mlp_bias = {"model.mlp_bias": theirs.get("mlp_bias", bool, False)}
        return block_settings(theirs) | autoregressive(folder) | mlp_bias
