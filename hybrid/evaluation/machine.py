"""Where a model is evaluated, and in which numbers: what stands in results beside them."""

from __future__ import annotations

from typing import Any

from hybrid.lm import LanguageModel
from hybrid.results.environment import environment


def environment_of(lm: LanguageModel) -> dict[str, Any]:
    """Make the `environment` of results: as of a run, with the precision of products and the dtype of the weights."""
    return {
        **environment(lm.device),
        "precision": lm.precision,
        "dtype": str(lm.model.embedding.weight.dtype).removeprefix("torch."),
    }
