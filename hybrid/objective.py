"""Objectives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hybrid.options import option


@dataclass
class ObjectiveConfig:
    block_size: Any = option(8, "an integer, a list of them (one is drawn per batch), or seq_len")
    estimator: Any = option("count", "how the ELBO is estimated: an entry of OBJECTIVES")
    schedule: Any = option("linear", "time form only: an entry of SCHEDULES")
    stratified: bool = option(True, "spread counts (or times) evenly over the global batch")
    draws: int = option(1, "noise draws that share one clean pass")
