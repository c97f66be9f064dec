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

QUICKEST = {"cpu": 2**23, "cuda": 2**28}
"""Logits at a time: 32 MiB in float32, measured on a CPU; 1 GiB on a GPU, where a product should have many rows."""

LOGITS: int | None = None
"""Most logits at a time; None: what is quickest on the device."""

MULTIPLE = {"cpu": 1, "cuda": 64}
"""The head is filled up to a multiple of so many ids, which have no probability: a GPU wants its rows aligned."""


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
        kind, vocab = hidden.device.type, len(matrix)
        h, w = hidden.to(dtype), matrix.to(dtype)
        if missing := -vocab % MULTIPLE.get(kind, 1):
            w = F.pad(w, (0, 0, 0, missing))
        losses = torch.empty(len(h), dtype=wide, device=h.device)
        grad_hidden = torch.empty_like(h) if needs_gradient else None
        grad_matrix = torch.zeros(w.shape, dtype=wide, device=h.device) if needs_gradient else None
        size = max((LOGITS or QUICKEST.get(kind, QUICKEST["cpu"])) // len(w), 1)
        for first in range(0, len(h), size):
            rows = slice(first, first + size)
            logits = _product(h[rows], w.t(), wide)
            if len(w) > vocab:
                logits[:, vocab:] = -torch.inf
            if banned is not None:
                logits[:, banned] = -torch.inf
            log_p = logits.log_softmax(-1)
            target = targets[rows, None]
            log_p_target = log_p.gather(-1, target)
            losses[rows] = -log_p_target.squeeze(-1)
            if grad_hidden is not None and grad_matrix is not None:
                # Weights scale the short side of both products: m x dim numbers, not m x V.
                p = log_p.exp_().scatter_(-1, target, torch.expm1(log_p_target)).to(dtype)  # p - 1 at the target
                scale = weights[rows, None]
                grad_hidden[rows] = torch.mm(p, w) * scale
                _add_product(grad_matrix, p.t(), (h[rows] * scale).to(dtype))
        ctx.save_for_backward(grad_hidden, None if grad_matrix is None else grad_matrix[:vocab])
        ctx.dtypes = hidden.dtype, matrix.dtype
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor):  # type: ignore[override]
        gradients = [(grad * g).to(dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return *gradients, None, None, None, None


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a b in `dtype`. On CUDA it is not rounded to the dtype of the factors on the way."""
    if a.device.type == "cuda" and a.dtype != dtype:
        return torch.mm(a, b, out_dtype=dtype)
    return torch.mm(a, b).to(dtype)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b. On CUDA in one operation, which adds up in the dtype of the total."""
    if a.device.type != "cuda":
        total += torch.mm(a, b)
    elif a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
