"""The bound: the evidence lower bound of masked diffusion, per block, in its count form.

    -log p(x^b | x^<b)  <=  sum_{n=1..L} E[m_n]

`m_n` is the mean cross-entropy over the masked tokens when n of the block's L are masked at random.

Shape legend: b rows, D noise draws, N text length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybrid.likelihoods.base import BOUND, Likelihood, LikelihoodMethod, Rows
from hybrid.likelihoods.enumerated import check_enumerable, enumerated_bound, sum_over_blocks
from hybrid.likelihoods.exact import exact_nll, per_row
from hybrid.model import Transformer
from hybrid.objectives.cross_entropy import MaskedLoss, masked_loss
from hybrid.objectives.estimators import Count


@dataclass(frozen=True)
class Bound(LikelihoodMethod):
    """The ELBO, by Monte Carlo or, with draws="all", over every mask; at block size 1 it is the exact likelihood."""

    relation: ClassVar[str] = BOUND
    is_exact_at_1: ClassVar[bool] = True
    takes_all_draws: ClassVar[bool] = True

    def nll(self, model: Transformer, rows: Rows, block_size: int, draws: int | str = 1, seed: int = 0) -> Likelihood:
        if draws == "all":
            check_enumerable(min(block_size, rows.tokens.shape[1]))
        if block_size == 1:
            return Likelihood.without_noise(exact_nll(model, rows), rows, "bound")
        if draws == "all":
            nll = sum_over_blocks(model, rows, block_size, enumerated_bound)
            return Likelihood.without_noise(nll, rows, "bound")
        values, _ = monte_carlo(model, rows, block_size, int(draws), seed)
        return Likelihood(*mean_and_error(values), rows.n_targets, "bound")


def monte_carlo(model: Transformer, rows: Rows, block_size: int, draws: int, seed: int) -> tuple[Tensor, MaskedLoss]:
    """Independent draws of each row's bound, (b, D) float64 nats, and the cross-entropies they came from.

    Within a draw the counts are stratified over the row's blocks; draws are independent, so they give the error.
    """
    masking = Count().draw(rows.noise_keys(seed), rows.is_target, block_size, draws, stratified=True)
    loss = masked_loss(model, rows.tokens, masking, block_size, rows.documents)
    return per_row(loss.cross_entropy.double() * masking.weight[masking.masked], masking.masked), loss


def mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    """(b, D) independent draws -> their mean and its standard error, (b,) each; NaN with one draw."""
    if values.shape[1] == 1:
        return values[:, 0], torch.full_like(values[:, 0], torch.nan)
    return values.mean(1), values.std(1) / math.sqrt(values.shape[1])
