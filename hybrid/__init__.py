"""hybrid: semi-autoregressive language models, from autoregressive to masked diffusion with one integer.

import hybrid
lm = hybrid.load("runs/quickstart")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybrid import checkpoints, data, decoding, evaluation, likelihoods, model, objectives
    from hybrid.config import load_config
    from hybrid.lm import LanguageModel, load

__all__ = [
    "LanguageModel",
    "checkpoints",
    "data",
    "decoding",
    "evaluation",
    "likelihoods",
    "load",
    "load_config",
    "model",
    "objectives",
]
_HOMES = {"load": "hybrid.lm", "LanguageModel": "hybrid.lm", "load_config": "hybrid.config"}


def __getattr__(name: str) -> Any:
    """Import what is asked for, so that `import hybrid` costs nothing."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in __all__:
        return importlib.import_module(f"hybrid.{name}")
    raise AttributeError(f"module 'hybrid' has no attribute {name!r}")
