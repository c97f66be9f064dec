"""Qwen2 and Qwen2.5."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.checkpoints.hugging_face.family import Family
from hybrid.checkpoints.hugging_face.settings import autoregressive, block_settings
from hybrid.checkpoints.hugging_face.their_config import TheirConfig


@dataclass(frozen=True)
class Qwen2(Family):
    """Biases on queries, keys and values, which no key of config.json mentions."""

    model_type = "qwen2"
    models = "Qwen2, Qwen2.5"

    def settings(self, theirs: TheirConfig, folder: Path) -> dict[str, Any]:
        return block_settings(theirs) | autoregressive(folder) | {"model.qkv_bias": True}
