"""The autoregressive likelihood: block size 1, the product of the conditionals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybrid.likelihoods.base import Likelihood, LikelihoodMethod, Rows
from hybrid.model import Transformer
from hybrid.objectives.cross_entropy import masked_loss
from hybrid.objectives.estimators import Masking


@dataclass(frozen=True)
class Exact(LikelihoodMethod):
    """-sum_l log p(x_l | x_<l), at block size 1."""

    is_exact_at_1: ClassVar[bool] = True
    max_block_size: ClassVar[int | None] = 1
    takes_all_draws: ClassVar[bool] = True

    def nll(self, model: Transformer, rows: Rows, block_size: int, draws: int | str = 1, seed: int = 0) -> Likelihood:
        if block_size != 1:
            raise ValueError(
                f"method: 'exact' is the likelihood at block size 1, not {block_size}; "
                "ask for block_size=1, or use 'bound' or 'enumerate'"
            )
        return Likelihood.without_noise(exact_nll(model, rows), rows, "exact")


def exact_nll(model: Transformer, rows: Rows) -> Tensor:
    """(b,) float64 nats at block size 1, where there is one mask per block."""
    masked = rows.is_target[:, None]
    loss = masked_loss(model, rows.tokens, Masking(masked, masked.double()), 1, rows.documents)
    return per_row(loss.cross_entropy, masked)[:, 0]


def per_row(values: Tensor, masked: Tensor) -> Tensor:
    """Values (m,) of the tokens masked in (b, D, N) -> their sums (b, D) float64."""
    sums = torch.zeros(masked.shape, dtype=torch.float64, device=masked.device)
    sums[masked] = values.double()
    return sums.sum(-1)
