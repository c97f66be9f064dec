"""The head and its cross-entropies in chunks of rows, so that memory does not grow with rows times vocabulary.

The weights of the losses are known beforehand, so each chunk's gradients are computed while its logits are at hand;
logits are neither kept nor computed twice.

Shape legend: m rows that are read, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid.device import autocast_dtype

LOGITS = 2**23
"""Most logits at a time: 32 MiB in float32."""


def plain_weighted_cross_entropy(
    hidden: Tensor, matrix: Tensor, targets: Tensor, weights: Tensor, banned: int | None = None
) -> Tensor:
    """Sum of weights * -log softmax(hidden matrix^T)[targets]."""
    logits = hidden @ matrix.t()
    if banned is not None:
        logits = logits.index_fill(-1, torch.tensor([banned], device=logits.device), -torch.inf)
    return (F.cross_entropy(logits, targets, reduction="none") * weights).sum()


def weighted_cross_entropy(
    hidden: Tensor, matrix: Tensor, targets: Tensor, weights: Tensor, banned: int | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the scalar of `plain_weighted_cross_entropy`, and the cross-entropies (m,) in nats without a gradient.

    Args:
        hidden: (m, dim).
        matrix: (V, dim) of the head.
        targets: (m,) ids.
        weights: (m,), constants.
        banned: an id that has no probability.

    Softmax and sums are at least in float32, products in the dtype of autocast.
    """
    dtype = autocast_dtype(hidden)
    return _WeightedCrossEntropy.apply(hidden, matrix, targets, weights, banned, dtype)  # type: ignore[return-value]


def cross_entropies(hidden: Tensor, matrix: Tensor, targets: Tensor, banned: int | None = None) -> Tensor:
    """(m, dim), (V, dim), (m,) -> (m,) nats, without a gradient."""
    with torch.no_grad():
        return weighted_cross_entropy(hidden, matrix, targets, torch.ones_like(targets), banned)[1]


class _WeightedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        matrix: Tensor,
        targets: Tensor,
        weights: Tensor,
        banned: int | None,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(dtype, torch.float32)
        weights = weights.to(wide)
        needs_gradient = any(ctx.needs_input_grad[:2])
        h, w = hidden.to(dtype), matrix.to(dtype)
        losses = torch.empty(len(h), dtype=wide, device=h.device)
        grad_hidden = torch.empty_like(h) if needs_gradient else None
        grad_matrix = torch.zeros(w.shape, dtype=wide, device=h.device) if needs_gradient else None
        size = max(LOGITS // len(w), 1)
        for first in range(0, len(h), size):
            rows = slice(first, first + size)
            logits = torch.mm(h[rows], w.t()).to(wide)
            if banned is not None:
                logits[:, banned] = -torch.inf
            lse = logits.logsumexp(-1, keepdim=True)
            target = targets[rows, None]
            losses[rows] = (lse - logits.gather(-1, target)).squeeze(-1)
            if grad_hidden is not None and grad_matrix is not None:
                p = logits.sub_(lse).exp_()
                p.scatter_add_(-1, target, p.new_full(target.shape, -1.0))
                p = p.mul_(weights[rows, None]).to(dtype)
                grad_hidden[rows] = torch.mm(p, w)
                grad_matrix += torch.mm(p.t(), h[rows])
        ctx.save_for_backward(grad_hidden, grad_matrix)
        ctx.dtypes = hidden.dtype, matrix.dtype
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor):  # type: ignore[override]
        gradients = [(grad * g).to(dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return *gradients, None, None, None, None
