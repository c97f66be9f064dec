"""A metric of generated text, and what it is given: texts, and what an evaluation model says of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np


@dataclass(frozen=True)
class Reading:
    """What an evaluation model says of n texts. A text without a token has 0 everywhere."""

    nats: np.ndarray  # (n,) negative log-likelihood of the tokens that are scored
    stderr: np.ndarray  # (n,) of `nats`, over noise draws; 0 where nothing is random
    tokens: np.ndarray  # (n,) how many tokens are scored
    bytes: np.ndarray  # (n,) UTF-8 bytes of the text that they make up
    features: np.ndarray  # (n, dim) float32
    is_cut: np.ndarray  # (n,) longer than the model's context
    is_lossless: bool = True  # the model's tokens give every text back

    @property
    def nats_per_token(self) -> float:
        return float(self.nats.sum() / self.tokens.sum()) if self.tokens.any() else math.nan

    @property
    def stderr_per_token(self) -> float:
        """Of `nats_per_token`: that of the model's noise, given these texts."""
        return float(np.sqrt((self.stderr**2).sum()) / self.tokens.sum()) if self.tokens.any() else math.nan

    @property
    def gen_ppl(self) -> float:
        """exp of nats per token, over all tokens of all texts (an upper bound of it where the model has a bound)."""
        nats = self.nats_per_token
        return math.exp(nats) if not nats > 700 else math.inf

    @property
    def nats_per_byte(self) -> float:
        """NaN if the model has read something else than the texts."""
        return float(self.nats.sum() / self.bytes.sum()) if self.is_lossless and self.bytes.any() else math.nan


class EvaluationModel(Protocol):
    """A second model that reads generated text.

    `about` says what it is and how it scores, for the record; `checkpoint` in it tells whether it is still the same
    (step and hash; None: not known).
    """

    @property
    def about(self) -> dict[str, Any]: ...

    def read(self, texts: Sequence[str]) -> Reading:
        """Score the texts and take their features.

        Raises:
            ValueError: a text that the model's tokenizer cannot hold.
        """
        ...


@dataclass(frozen=True)
class Texts:
    """n texts that are measured together: as token ids, decoded, and as an evaluation model reads them.

    Every token counts, end-of-text among them.
    """

    rows: Sequence[Sequence[int]]
    texts: Sequence[str]
    reading: Reading | None = None  # None: without an evaluation model


class Column(NamedTuple):
    """A number in the printed table."""

    heading: str
    key: str
    form: str  # as `format` takes it


class Metric(ABC):
    """An entry of `METRICS`: a frozen dataclass, whose fields are its options, with `measure`.

    `columns` are those of its numbers that are printed; eval.json has all of them.
    """

    columns: ClassVar[tuple[Column, ...]]
    needs_evaluation_model: ClassVar[bool] = False
    """Whether it asks for `Texts.reading`; without an evaluation model it is left out."""

    needs_reference: ClassVar[bool] = False
    """Whether it holds texts against real ones. In the line of real text it is given a second sample of that;
    where there is none, it is left out."""

    is_compared: ClassVar[bool] = False
    """Whether `hybrid.report` shows its columns, too. Entropy and nats per byte have columns there of their own."""

    def check(self) -> None:
        """Raise a ValueError if a library that it needs is not installed."""
        return

    @abstractmethod
    def measure(self, texts: Texts, reference: Texts) -> dict[str, float]:
        """Measure texts, beside real ones: numbers by their keys in eval.json, NaN where there is no value."""

    def notes(self, numbers: Sequence[Mapping[str, float]], model: EvaluationModel | None) -> list[str]:
        """List what must be said below the table.

        Args:
            numbers: of each line, those of all metrics that apply, by their keys.
            model: the evaluation model, if there is one.
        """
        return []
