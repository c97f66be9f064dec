"""A likelihood, what it takes and what it gives: rows of text, a method, nats per row.

Shape legend: b rows, N text length, g blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybrid import rng
from hybrid.model import ModelConfig, Transformer
from hybrid.objectives.noise import NoiseKeys

EQUAL, BOUND, NO_PROCEDURE = "=", "<=", "~"
"""How a number stands to the negative log-likelihood of a procedure that generates text: it is that of one; it is at
least that of one; or it is that of none."""


@dataclass(frozen=True)
class Rows:
    """Rows of text: their tokens, and which of them count.

    Attributes:
        tokens: (b, N) int64.
        is_target: (b, N) bool, the tokens that count; the others are given.
        documents: (b, N) int64, the document of each token; None: all are of one.
        row_keys: (b,) int64, what the noise of the bound is keyed by; None: the content of a row, so that the result
            does not depend on the batch.
    """

    tokens: Tensor
    is_target: Tensor
    documents: Tensor | None = None
    row_keys: Tensor | None = None

    @classmethod
    def of(
        cls, tokens: Tensor, is_target: Tensor | None = None, documents: Tensor | None = None,
        row_keys: Tensor | None = None,
    ) -> Rows:  # fmt: skip
        """Make rows; all tokens count where `is_target` is None."""
        return cls(
            tokens, torch.ones_like(tokens, dtype=torch.bool) if is_target is None else is_target, documents, row_keys
        )

    @property
    def n_targets(self) -> Tensor:
        """(b,) int64."""
        return self.is_target.sum(1)

    def content_keys(self, seed: int) -> NoiseKeys:
        """Key the noise of each row by its content."""
        return NoiseKeys.of_rows(seed, torch.tensor(rng.row_keys(self.tokens.tolist()), device=self.tokens.device))

    def noise_keys(self, seed: int) -> NoiseKeys:
        """Key the noise of each row by `row_keys`, or by its content."""
        return self.content_keys(seed) if self.row_keys is None else NoiseKeys.of_rows(seed, self.row_keys)


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihoods in nats per row.

    `stderr` is that of each row's estimate over independent noise draws: 0 where nothing is random, NaN with one draw.
    `tokens` counts the target tokens of each row.
    """

    nll: Tensor  # (b,) float64
    stderr: Tensor  # (b,) float64
    tokens: Tensor  # (b,) int64
    method: str
    blocks: Tensor | None = None  # (b, g) float64, nats of each block; only of a policy

    @classmethod
    def without_noise(cls, nll: Tensor, rows: Rows, method: str, blocks: Tensor | None = None) -> Likelihood:
        return cls(nll, torch.zeros_like(nll), rows.n_targets, method, blocks)


class LikelihoodMethod(ABC):
    """An entry of `LIKELIHOODS`: a frozen dataclass, whose fields are its options, with `nll`."""

    relation: ClassVar[str] = EQUAL
    note: ClassVar[str] = "the likelihood of no procedure"
    """Said once below a table in which its relation is `NO_PROCEDURE`."""

    latent: ClassVar[str | None] = "none"
    """Of a model with random numbers in MASK: how texts draw them of which it is the likelihood, as the option `latent`
    of a generation; None: however they do, since it reads no MASK."""

    is_exact_at_1: ClassVar[bool] = False
    """Whether it is `exact` at block size 1, so that it needs no line of its own there."""

    max_block_size: ClassVar[int | None] = None
    """Largest block that it can do; None: any."""

    takes_all_draws: ClassVar[bool] = False
    """Whether `draws` may be "all": every mask, once."""

    @classmethod
    def is_of(cls, config: ModelConfig) -> bool:
        """Return whether networks of this kind have it."""
        return True

    @abstractmethod
    def nll(self, model: Transformer, rows: Rows, block_size: int, draws: int | str = 1, seed: int = 0) -> Likelihood:
        """Score each row.

        Args:
            draws: independent noise draws of each row; ignored where nothing is random.

        Raises:
            ValueError: a block size, or an option, with which it has no value.
        """


def checked(likelihood: Likelihood, method: LikelihoodMethod, rows: Rows) -> Likelihood:
    """Return what a method gave for rows of text.

    Raises:
        ValueError: it is no `Likelihood` of them; the message names the method.
    """
    name = f"method: nll of {type(method).__name__} gave"
    if not isinstance(likelihood, Likelihood):
        what = type(likelihood).__name__
        raise ValueError(f"{name} a {what}; it must be a Likelihood, e.g. Likelihood.without_noise(nll, rows, 'mine')")
    for key in ("nll", "stderr", "tokens"):
        value, n = getattr(likelihood, key), len(rows.tokens)
        if not isinstance(value, Tensor) or value.shape != (n,):
            what = f"{tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ValueError(f"{name} {what} as {key!r}; it must be a tensor of shape ({n},), a number for each row")
    return likelihood
