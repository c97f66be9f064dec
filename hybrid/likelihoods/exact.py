"""The autoregressive likelihoods: products of the conditionals p(x_l | x_<l), read in two ways.

`exact`   at block size 1, as training at block size 1 trains them: an `in_place` model reads token l off a MASK at l.
`causal`  each token off the clean row before it (`context: causal`), as `objective.ar_weight` trains them.

Of a `next_token` model they are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybrid.likelihoods.base import Likelihood, LikelihoodMethod, Rows
from hybrid.model import ModelConfig, Transformer
from hybrid.model.kernels.cross_entropy import cross_entropies
from hybrid.model.two_stream import check_reads_causally, reads_causally, two_stream_hidden
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


@dataclass(frozen=True)
class Causal(LikelihoodMethod):
    """-sum_l log p(x_l | x_<l), each token off the clean row before it, whatever the block size."""

    latent: ClassVar[str | None] = None
    takes_all_draws: ClassVar[bool] = True

    @classmethod
    def is_of(cls, config: ModelConfig) -> bool:
        return reads_causally(config)

    def nll(self, model: Transformer, rows: Rows, block_size: int, draws: int | str = 1, seed: int = 0) -> Likelihood:
        check_reads_causally(model.config, "method: 'causal'")
        nobody = rows.is_target[:, None][:, :0]  # no noisy stream
        hidden = two_stream_hidden(model, rows.tokens, nobody, 1, rows.documents, rows.is_target)
        targets = rows.tokens[rows.is_target]
        losses = cross_entropies(hidden, model.head_matrix(), targets, model.banned_token_id)
        return Likelihood.without_noise(per_row(losses, rows.is_target[:, None])[:, 0], rows, "causal")


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
