"""SDAR and TraDo: the network of Qwen3, trained to fill in blocks (Cheng et al. 2510.06303)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.checkpoints.hugging_face.family import Family
from hybrid.checkpoints.hugging_face.qwen3 import qwen3_block
from hybrid.checkpoints.hugging_face.settings import end_ids
from hybrid.checkpoints.hugging_face.their_config import TheirConfig


@dataclass(frozen=True)
class Sdar(Family):
    """Blocks that see themselves, tokens read where they stand, MASK inside the vocabulary with a row in the head."""

    model_type = "sdar"
    models = "SDAR"

    def settings(self, theirs: TheirConfig, folder: Path) -> dict[str, Any]:
        return qwen3_block(theirs) | {
            "model.context": "block_causal",
            "model.prediction": "in_place",
            "model.mask_token_id": theirs.required("mask_token_id", int),
            "model.ban_mask": False,  # their softmax is over all rows
            "objective.block_size": theirs.size("block_size"),
            **end_ids(folder),
        }
