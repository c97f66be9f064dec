"""Llama 2 and 3.x, SmolLM2, and whatever else calls itself `llama`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.checkpoints.hugging_face.family import Family
from hybrid.checkpoints.hugging_face.settings import autoregressive, block_settings
from hybrid.checkpoints.hugging_face.their_config import TheirConfig
from hybrid.model.config import ModelConfig


@dataclass(frozen=True)
class Llama(Family):
    """No norms of queries and keys, no biases in the attention."""

    model_type = "llama"
    architecture = "LlamaForCausalLM"
    models = "Llama 2 and 3, SmolLM2"
    fixed = {"prediction": "next_token", "qk_norm": False, "qkv_bias": False}  # noqa: RUF012

    def to_ours(self, theirs: TheirConfig, folder: Path) -> dict[str, Any]:
        theirs.refuse("attention_bias", (False,), "no bias on what the attention writes")
        mlp_bias = {"model.mlp_bias": theirs.get("mlp_bias", bool, False)}
        return block_settings(theirs) | autoregressive(folder) | mlp_bias

    def to_theirs(self, model: ModelConfig, vocab_size: int, block_size: int) -> dict[str, Any]:
        return {"attention_bias": False, "mlp_bias": model.mlp_bias}
