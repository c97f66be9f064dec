"""Generation: the block loop (engine) and the decoders, which decide which positions to reveal.

A new decoder is a frozen dataclass with `start` and `select` (see `decoder.Decoder`) and a line in `DECODERS`.
Two write in a loop of their own (`speculative.py`).
"""

from __future__ import annotations

from typing import Any

from hybrid.decoding.confidence import Confidence, Entropy, EntropyBounded, Margin
from hybrid.decoding.config import GenerationConfig
from hybrid.decoding.copula import Copula
from hybrid.decoding.decoder import Decoder, View
from hybrid.decoding.fixed_order import Ancestral, FirstHitting, LeftToRight, Random
from hybrid.decoding.remasking import CausalCorrector, MaskPredict, PathPlanning, ReMDM
from hybrid.decoding.sampling import Sampling
from hybrid.decoding.speculative import Autoregressive, Speculative

DECODERS: dict[str, Any] = {
    "first_hitting": FirstHitting,
    "ancestral": Ancestral,
    "left_to_right": LeftToRight,
    "random": Random,
    "confidence": Confidence,
    "margin": Margin,
    "entropy": Entropy,
    "entropy_bounded": EntropyBounded,
    "mask_predict": MaskPredict,
    "p2": PathPlanning,
    "arpc": CausalCorrector,
    "remdm": ReMDM,
    "copula": Copula,
    "autoregressive": Autoregressive,
    "speculative": Speculative,
}

__all__ = ["DECODERS", "Decoder", "GenerationConfig", "Sampling", "View"]
