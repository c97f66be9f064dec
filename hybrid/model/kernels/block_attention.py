"""Attention of chunks of rows over just the keys that each chunk needs (CPU).

Each chunk is one call of torch's flash kernel; its part of the mask remains. The backward accumulates the chunks'
gradients in place, where autograd would add up a full-sized tensor for every slice.

Shape legend: b batch, h heads, q query rows, k key rows, d head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class Chunk:
    """Query rows and the spans of key rows that they need, with the additive mask (1 or b, 1, rows, keys), if any."""

    rows: slice
    spans: tuple[slice, ...]
    mask: Tensor | None

    def gather(self, t: Tensor) -> Tensor:
        """Gather the key rows of the spans: (b, h, k, d) -> (b, h, keys, d)."""
        parts = [t[:, :, span] for span in self.spans]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def plain_chunked_attention(q: Tensor, k: Tensor, v: Tensor, chunks: list[Chunk]) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v of each chunk."""
    parts = []
    for chunk in chunks:
        scores = q[:, :, chunk.rows] @ chunk.gather(k).transpose(-1, -2) * q.shape[-1] ** -0.5
        parts.append((scores if chunk.mask is None else scores + chunk.mask).softmax(-1) @ chunk.gather(v))
    return torch.cat(parts, dim=2)


def chunked_attention(q: Tensor, k: Tensor, v: Tensor, chunks: list[Chunk]) -> Tensor:
    """`plain_chunked_attention`: q (b, h, q, d), k and v (b, h, k, d) -> (b, h, q, d); the chunks' rows are all rows in
    order, and every row sees at least one key."""
    return _Chunked.apply(q, k, v, chunks)  # type: ignore[no-any-return]


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, chunks: list[Chunk]) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(q, k, v)
        ctx.chunks = chunks
        parts = [
            _flash(q[:, :, chunk.rows], chunk.gather(k), chunk.gather(v), 0.0, False, attn_mask=chunk.mask)[0]
            for chunk in chunks
        ]
        return torch.cat(parts, dim=2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        q, k, v = ctx.saved_tensors
        grads_q = []
        grad_k, grad_v = torch.zeros_like(k), torch.zeros_like(v)
        for chunk in ctx.chunks:
            here = (q[:, :, chunk.rows], chunk.gather(k), chunk.gather(v))
            gq, gk, gv = _gradients(*here, grad[:, :, chunk.rows], chunk.mask)
            grads_q.append(gq)
            first = 0
            for span in chunk.spans:
                n = span.stop - span.start
                grad_k[:, :, span] += gk[:, :, first : first + n]
                grad_v[:, :, span] += gv[:, :, first : first + n]
                first += n
        return torch.cat(grads_q, dim=2), grad_k, grad_v, None


def _gradients(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Backward of softmax attention by explicit products, on a CPU several times as fast as the flash backward.

    The softmax is computed again: a chunk has all keys of its rows. Scores are kept in the dtype of `q`, since passes
    over them cost more than products do.
    """
    heads, scale = q.shape[:2], q.shape[-1] ** -0.5
    q, k, v, grad = (t.flatten(0, 1) for t in (q, k, v, grad))  # (b h, rows, d)
    nothing = q.new_zeros(())  # `baddbmm` multiplies by the scale on the way, where a product by itself cannot
    if mask is None:
        scores = torch.baddbmm(nothing, q, k.transpose(1, 2), beta=0, alpha=scale)
    else:
        mask = mask[0] if mask.shape[0] == 1 else mask.expand(-1, heads[1], -1, -1).flatten(0, 1)
        scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale)
    p = torch.softmax(scores, dim=-1)
    grad_v = torch.bmm(p.transpose(1, 2), grad)
    grad_p = torch.bmm(grad, v.transpose(1, 2))
    grad_scores = torch.ops.aten._softmax_backward_data(grad_p, p, -1, p.dtype)
    grad_q = torch.baddbmm(nothing, grad_scores, k, beta=0, alpha=scale)
    grad_k = torch.baddbmm(nothing, grad_scores.transpose(1, 2), q, beta=0, alpha=scale)
    return grad_q.unflatten(0, heads), grad_k.unflatten(0, heads), grad_v.unflatten(0, heads)
