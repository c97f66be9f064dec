"""Qwen2 and Qwen2.5."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.checkpoints.hugging_face.family import Family
from hybrid.checkpoints.hugging_face.settings import autoregressive, block_settings
from hybrid.checkpoints.hugging_face.their_config import TheirConfig
from hybrid.model.config import ModelConfig

QWEN_DEFAULTS = {"kv_heads": 32, "seq_len": 32768}
"""Of keys that are left out; those of Llama are others."""


@dataclass(frozen=True)
class Qwen2(Family):
    """Biases on queries, keys and values, which no key of config.json mentions."""

    model_type = "qwen2"
    architecture = "Qwen2ForCausalLM"
    models = "Qwen2, Qwen2.5"
    fixed = {"prediction": "next_token", "qk_norm": False, "qkv_bias": True, "mlp_bias": False}  # noqa: RUF012

    def to_ours(self, theirs: TheirConfig, folder: Path) -> dict[str, Any]:
        return block_settings(theirs, **QWEN_DEFAULTS) | autoregressive(folder)

    def to_theirs(self, model: ModelConfig, vocab_size: int, block_size: int) -> dict[str, Any]:
        return {"use_sliding_window": False}
