"""What a judge says of texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Reading:
    """What a judge says of n texts. A text without a token has 0 everywhere."""

    nats: np.ndarray  # (n,) negative log-likelihood of the tokens that are scored
    stderr: np.ndarray  # (n,) of `nats`, over noise draws; 0 where nothing is random
    tokens: np.ndarray  # (n,) how many tokens are scored
    bytes: np.ndarray  # (n,) UTF-8 bytes of the text that they make up
    features: np.ndarray  # (n, dim) float32
    is_cut: np.ndarray  # (n,) longer than the judge's context
    is_lossless: bool = True  # the judge's tokens give every text back

    @property
    def nats_per_token(self) -> float:
        return float(self.nats.sum() / self.tokens.sum()) if self.tokens.any() else math.nan

    @property
    def stderr_per_token(self) -> float:
        """Of `nats_per_token`: that of the judge's noise, given these texts."""
        return float(np.sqrt((self.stderr**2).sum()) / self.tokens.sum()) if self.tokens.any() else math.nan

    @property
    def gen_ppl(self) -> float:
        """exp of nats per token, over all tokens of all texts (an upper bound of it where the judge has a bound)."""
        nats = self.nats_per_token
        return math.exp(nats) if not nats > 700 else math.inf

    @property
    def nats_per_byte(self) -> float:
        """NaN if the judge has read something else than the texts."""
        return float(self.nats.sum() / self.bytes.sum()) if self.is_lossless and self.bytes.any() else math.nan


class EvaluationModel(Protocol):
    """`about` says what it is and how it scores, for the record; `checkpoint` in it tells whether it is still the same
    (step and hash; None: not known)."""

    @property
    def about(self) -> dict[str, Any]: ...

    def read(self, texts: Sequence[str]) -> Reading:
        """Score the texts and take their features.

        Raises:
            ValueError: a text that the judge's tokenizer cannot hold.
        """
        ...
