"""Masked cross-entropy: the loss of a batch that is masked in a given way, and the objective that draws the masks.

With m_n the mean cross-entropy over the masked tokens when n of a block's L target tokens are masked at random,

    -log p(x^b | x^<b)  <=  sum_{n=1..L} E[m_n]

(Zheng et al. 2409.02908, prop. 3.1). An estimator gives each masked token a weight such that the expected weighted sum
of cross-entropies is that bound.

Shape legend: b rows, D noise draws, N text length, g blocks, B block size, m masked tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hybrid.device import send
from hybrid.model import Transformer
from hybrid.model.kernels.cross_entropy import weighted_cross_entropy
from hybrid.model.two_stream import two_stream_hidden
from hybrid.objectives.estimators import Masking
from hybrid.objectives.noise import NoiseKeys, block_view
from hybrid.objectives.objective import Loss, MaskedObjective
from hybrid.objectives.weightings import Elbo
from hybrid.options import provided

if TYPE_CHECKING:
    from hybrid.data.batches import Batch


@dataclass(frozen=True)
class MaskedLoss(Loss):
    """Cross-entropies of the masked tokens of a batch, in the order of `masked.nonzero()`; `total` weighs them.

    `autoregressive` is the exact left-to-right NLL of the batch in nats, where it was asked for.
    """

    cross_entropy: Tensor  # (m,) float32 or float64, detached
    masking: Masking
    autoregressive: Tensor | None = None  # () with a gradient

    def by_block(self, block_size: int) -> tuple[Tensor, Tensor]:
        """Return the number n of masked tokens of each block, and their mean cross-entropy m_n, (b, D, g) each.

        m_n is float64, and 0 where n = 0. Both are where the masks are: with masks on the host, this waits for a GPU.
        """
        masked = self.masking.masked
        losses = torch.zeros(masked.shape, dtype=torch.float64, device=masked.device)
        losses[masked] = self.cross_entropy.to(masked.device, torch.float64)
        n = block_view(masked, block_size, False).sum(-1)
        return n, block_view(losses, block_size, 0.0).sum(-1) / n.clamp(min=1)

    def by_count(self, block_size: int) -> tuple[Tensor, Tensor]:
        """Sum m_n, and count the blocks, for n = 0..B masked tokens of a block: two (B + 1,) float64."""
        n, mean = (t.flatten() for t in self.by_block(block_size))
        sums = torch.zeros(block_size + 1, dtype=torch.float64, device=n.device).index_add_(0, n, mean)
        return sums, torch.bincount(n, minlength=block_size + 1).double()


def masked_loss(
    model: Transformer, tokens: Tensor, masking: Masking, block_size: int, documents: Tensor | None = None,
    autoregressive: Tensor | None = None,
) -> MaskedLoss:  # fmt: skip
    """Run both streams and weigh the cross-entropies of the masked tokens.

    Tokens and masking may be on the host, wherever the model is: `two_stream_hidden`.

    Args:
        tokens: (b, N) int64.
        autoregressive: (b, N) booleans, tokens whose left-to-right NLL is wanted as well (`context: causal`).
    """
    hidden = two_stream_hidden(model, tokens, masking.masked, block_size, documents, autoregressive)
    row, _, position = masking.masked.nonzero(as_tuple=True)
    weights = send(masking.weight[masking.masked] / masking.masked.shape[1], hidden.device)
    targets = send(tokens[row, position], hidden.device)
    matrix, banned = model.head_matrix(), model.banned_token_id
    total, losses = weighted_cross_entropy(hidden[: len(row)], matrix, targets, weights, banned)
    left_to_right = None
    if autoregressive is not None:
        targets = send(tokens[autoregressive], hidden.device)
        ones = torch.ones_like(targets, dtype=weights.dtype)
        left_to_right, _ = weighted_cross_entropy(hidden[len(row) :], matrix, targets, ones, banned)
    return MaskedLoss(total, losses, masking, left_to_right)


@dataclass(frozen=True)
class MaskedCrossEntropy(MaskedObjective):
    """Weighted cross-entropy of the masked tokens (the ELBO, where the weighting is `elbo`), and perhaps an
    autoregressive loss on the same clean pass."""

    ar_weight: float = provided(0.0)

    @property
    def is_elbo(self) -> bool:
        return isinstance(self.weighting, Elbo) and not hasattr(self.estimator, "bias")

    def loss(self, model: Transformer, batch: Batch, noise: NoiseKeys, block_size: int) -> MaskedLoss:
        # At block size 1 the loss of a `next_token` model is the autoregressive one already.
        is_other = block_size > 1 or not model.config.begin
        autoregressive = batch.is_target if self.ar_weight and is_other else None
        masking = self.draw(batch, noise, block_size)
        loss = masked_loss(model, batch.tokens, masking, block_size, batch.documents, autoregressive)
        logged = {"nelbo" if self.is_elbo else "loss": loss.total.detach()}  # only an estimate of the ELBO is called so
        if loss.autoregressive is None:
            return replace(loss, logged=logged)
        logged["ar_nll"] = loss.autoregressive.detach()
        return replace(loss, total=loss.total + self.ar_weight * loss.autoregressive, logged=logged)
