"""SDAR and TraDo: the network of Qwen3, trained to fill in blocks (Cheng et al. 2510.06303)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.checkpoints.hugging_face.family import Family
from hybrid.checkpoints.hugging_face.qwen3 import QWEN3_BLOCK, qwen3_settings
from hybrid.checkpoints.hugging_face.settings import end_ids
from hybrid.checkpoints.hugging_face.their_config import TheirConfig
from hybrid.model.config import ModelConfig


@dataclass(frozen=True)
class Sdar(Family):
    """Blocks that see themselves, tokens read where they stand, MASK inside the vocabulary with a row in the head."""

    model_type = "sdar"
    architecture = "SDARForCausalLM"
    models = "SDAR"
    fixed = {"prediction": "in_place", "context": "block_causal", **QWEN3_BLOCK}  # noqa: RUF012

    def to_ours(self, theirs: TheirConfig, folder: Path) -> dict[str, Any]:
        return qwen3_settings(theirs) | {
            "model.mask_token_id": theirs.required("mask_token_id", int),
            "model.ban_mask": False,  # their softmax is over all rows
            "objective.block_size": theirs.size("block_size"),
            **end_ids(folder),
        }

    def to_theirs(self, model: ModelConfig, vocab_size: int, block_size: int) -> dict[str, Any]:
        mask = vocab_size - 1 if model.mask_token_id is None else model.mask_token_id
        return {"attention_bias": False, "block_size": block_size, "mask_token_id": mask, "use_sliding_window": False}
