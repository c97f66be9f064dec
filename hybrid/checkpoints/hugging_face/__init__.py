"""Folders of Hugging Face models, read from JSON and safetensors alone: no code in them is run, nothing unpickled."""

from __future__ import annotations

from pathlib import Path

from hybrid.checkpoints.hugging_face.family import Family
from hybrid.checkpoints.hugging_face.llama import Llama
from hybrid.checkpoints.hugging_face.qwen2 import Qwen2
from hybrid.checkpoints.hugging_face.qwen3 import Qwen3
from hybrid.checkpoints.hugging_face.sdar import Sdar
from hybrid.checkpoints.hugging_face.their_config import TheirConfig
from hybrid.options import shown

__all__ = ["FAMILIES", "Family", "refuse_unknown"]

FAMILIES: dict[str, type[Family]] = {family.model_type: family for family in (Llama, Qwen2, Qwen3, Sdar)}
"""Families by the `model_type` of their config.json."""
_REASONS = {
    "gpt2": "LayerNorm, learned positions and GELU",
    "mixtral": "a mixture of experts",
    "deepseek_v3": "a mixture of experts",
    "lladamoe": "a mixture of experts",
}


def refuse_unknown(folder: Path) -> None:
    """Raise a ValueError that says why no family reads a folder, if its config.json names a model or is damaged."""
    model_type = TheirConfig.of(folder).values.get("model_type")
    if model_type is None:
        return
    reason = "a mixture of experts" if str(model_type).endswith("_moe") else _REASONS.get(str(model_type))
    covered = "; ".join(f"{name} ({family.models})" for name, family in FAMILIES.items())
    raise ValueError(
        f"config.json: model_type {shown(model_type)}{f' ({reason})' if reason else ''}: not covered; "
        f"covered are {covered}; --imports registers an importer of your own"
    )
