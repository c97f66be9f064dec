"""Qwen3, the dense ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.checkpoints.hugging_face.family import Family
from hybrid.checkpoints.hugging_face.qwen2 import QWEN_DEFAULTS
from hybrid.checkpoints.hugging_face.settings import autoregressive, block_settings
from hybrid.checkpoints.hugging_face.their_config import TheirConfig
from hybrid.model.config import ModelConfig

QWEN3_BLOCK = {"qk_norm": True, "qkv_bias": False, "mlp_bias": False}


def qwen3_settings(theirs: TheirConfig) -> dict[str, Any]:
    """Return sizes, norms and positions, by our keys."""
    theirs.refuse("attention_bias", (False,), "no bias on what the attention writes")
    return block_settings(theirs, **QWEN_DEFAULTS) | {"model.head_dim": theirs.size("head_dim", 128)}


@dataclass(frozen=True)
class Qwen3(Family):
    """Norms of queries and keys, heads of a width of their own."""

    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    models = "Qwen3"
    fixed = {"prediction": "next_token", **QWEN3_BLOCK}  # noqa: RUF012

    def to_ours(self, theirs: TheirConfig, folder: Path) -> dict[str, Any]:
        return qwen3_settings(theirs) | autoregressive(folder)

    def to_theirs(self, model: ModelConfig, vocab_size: int, block_size: int) -> dict[str, Any]:
        return {"attention_bias": False, "use_sliding_window": False}
