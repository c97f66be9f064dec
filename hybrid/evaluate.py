"""Likelihoods with their errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hybrid.options import option


@dataclass
class EvalConfig:
    rows: int = option(64, "validation rows used during training (0: all)")
    draws: int = option(4, "noise draws per row; the standard error comes from them")
    batch_rows: int = option(32, "rows per forward; the result does not depend on it")
    block_sizes: Any = option(None, "block sizes evaluated: a list, or null for those that are trained")
    sample_tokens: int = option(256, "new tokens of each sample")
    sample_prompts: Any = option(["", "The "], "prompts of the samples")
