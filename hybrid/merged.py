"""Prefix attention merged with own-block attention by log-sum-exp: the exact staircase, without its empty half (CPU).

A row of block g attends to the keys of the blocks before g (the prefix) and to the keys of its own block. The two parts
are computed apart and merged. With outputs o1, o2 and log-sum-exps l1, l2 of the parts,

    l = logaddexp(l1, l2),    o = o1 exp(l1 - l) + o2 exp(l2 - l),

and the backward of each part is exact when it is given the merged o and l (as in ring attention).

Shape legend: b batch, h heads, s copies of the text (noise draws), n text rows, c prefix keys, g blocks, B block size,
d head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64
"""Rows of text that share one prefix call. Smaller chunks compute less of the masked-out half, with more calls."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class PrefixChunk:
    """Text rows [start, stop) see a part of the prefix keys [0, n_keys)."""

    start: int
    stop: int
    n_keys: int
    mask: Tensor | None  # additive, (1 or b, 1, s * (stop - start), n_keys); None: all of them
    blind: Tensor | None  # (1 or b, 1, s * (stop - start)): rows that see none; None: there are none


def prefix_chunks(visible: Tensor, copies: int, block_size: int, dtype: torch.dtype) -> list[PrefixChunk]:
    """Cut the prefix part into chunks of text rows and leave out the keys that no row of a chunk may see.

    Args:
        visible: (1 or b, n, c) booleans.
        copies: s, how many copies of the text ask.
    """
    n, c = visible.shape[1:]
    size = max(1, CHUNK // block_size) * block_size
    seen = visible.any(0)  # (n, c)
    chunks = []
    for start in range(0, n, size):
        stop = min(start + size, n)
        keys = seen[start:stop].any(0).nonzero()
        if not len(keys):
            continue
        n_keys = int(keys[-1]) + 1
        part = visible[:, start:stop, :n_keys].repeat(1, copies, 1)
        blind = ~part.any(-1)
        mask = None
        if not part.all():
            mask = torch.zeros(part.shape, dtype=dtype).masked_fill_(~part, -torch.inf)[:, None]
        chunks.append(PrefixChunk(start, stop, n_keys, mask, blind[:, None] if blind.any() else None))
    return chunks


def merged_attention(
    q: Tensor, prefix: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], chunks: list[PrefixChunk],
    own_mask: Tensor | None, block_size: int
) -> Tensor:  # fmt: skip
    """Attend to a prefix and to the own block.

    Args:
        q: (b, h, s, n, d), with n a multiple of B.
        prefix: keys and values, (b, h, c, d) each.
        own: keys and values of the rows themselves, shaped like `q`.
        chunks: from `prefix_chunks`.
        own_mask: additive, broadcasting against (b, h, s, g, B, B), or None.

    Returns:
        (b, h, s, n, d)
    """
    return _Merged.apply(q, *prefix, *own, chunks, own_mask, block_size)  # type: ignore[no-any-return]


def _scores(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """q k^T / sqrt(d) + mask, at least in float32: a bfloat16 score would be off by more than its softmax can bear."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.matmul(q.to(wide) * q.shape[-1] ** -0.5, k.to(wide).transpose(-1, -2))
    return scores if mask is None else scores.add_(mask)


def _score_gradients(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, lse: Tensor, delta: Tensor, mask: Tensor | None):
    """Gradients (q, k, v) of the part of an attention that sees these keys, given the log-sum-exp over all keys and
    delta = sum(grad * out)."""
    p = _scores(q, k, mask).sub_(lse[..., None]).exp_()
    grad_v = torch.matmul(p.to(q.dtype).transpose(-1, -2), grad)
    grad_scores = torch.matmul(grad, v.transpose(-1, -2)).to(p.dtype).sub_(delta[..., None]).mul_(p)
    grad_scores = grad_scores.mul_(q.shape[-1] ** -0.5).to(q.dtype)
    return torch.matmul(grad_scores, k), torch.matmul(grad_scores.transpose(-1, -2), q), grad_v


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q, k_prefix, v_prefix, k_own, v_own, chunks, own_mask, block_size):  # type: ignore[override]
        blocks = (*q.shape[:3], -1, block_size, q.shape[-1])  # (b, h, s, g, B, d)
        scores = _scores(q.view(blocks), k_own.view(blocks), own_mask)
        lse_own = scores.logsumexp(-1, keepdim=True)
        out = torch.matmul(scores.sub_(lse_own).exp_().to(q.dtype), v_own.view(blocks)).view(q.shape)
        lse = lse_own.view(q.shape[:4])  # (b, h, s, n)
        for chunk in chunks:
            rows = slice(chunk.start, chunk.stop)
            part_q = q[:, :, :, rows].flatten(2, 3)
            keys, values = k_prefix[:, :, : chunk.n_keys], v_prefix[:, :, : chunk.n_keys]
            o, l_prefix = _flash(part_q, keys, values, 0.0, False, attn_mask=chunk.mask)
            if chunk.blind is not None:  # the kernel reports 0, not -inf, where no key is visible
                l_prefix = l_prefix.masked_fill(chunk.blind, -torch.inf)
            l_own, o_own = lse[:, :, :, rows], out[:, :, :, rows]
            l_prefix = l_prefix.view(l_own.shape)
            merged = torch.logaddexp(l_own, l_prefix)
            w_prefix = (l_prefix - merged).exp_().to(q.dtype)[..., None]
            w_own = (l_own - merged).exp_().to(q.dtype)[..., None]
            out[:, :, :, rows] = torch.addcmul(o_own * w_own, o.reshape(o_own.shape), w_prefix)
            lse[:, :, :, rows] = merged
        ctx.save_for_backward(q, k_prefix, v_prefix, k_own, v_own, out, lse)
        ctx.chunks, ctx.own_mask, ctx.blocks = chunks, own_mask, blocks
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor):  # type: ignore[override]
        q, k_prefix, v_prefix, k_own, v_own, out, lse = ctx.saved_tensors
        blocks = ctx.blocks
        grad = grad_out.contiguous()
        delta = (grad * out).sum(-1, dtype=lse.dtype)  # (b, h, s, n)
        own = _score_gradients(
            *(t.view(blocks) for t in (q, k_own, v_own, grad)), *(t.view(blocks[:-1]) for t in (lse, delta)), ctx.own_mask
        )
        grad_q, grad_k_own, grad_v_own = (t.view(q.shape) for t in own)
        # The explicit products are several times faster here than the flash backward, which also skips nothing.
        grad_k, grad_v = (torch.zeros_like(t, dtype=lse.dtype) for t in (k_prefix, v_prefix))
        for chunk in ctx.chunks:
            rows, n = slice(chunk.start, chunk.stop), chunk.n_keys
            part_q, part_grad, part_lse, part_delta = (t[:, :, :, rows].flatten(2, 3) for t in (q, grad, lse, delta))
            gq, gk, gv = _score_gradients(
                part_q, k_prefix[:, :, :n], v_prefix[:, :, :n], part_grad, part_lse, part_delta, chunk.mask
            )
            grad_q[:, :, :, rows] += gq.view(q[:, :, :, rows].shape)
            grad_k[:, :, :n] += gk
            grad_v[:, :, :n] += gv
        grads = grad_k.to(q.dtype), grad_v.to(q.dtype)
        return grad_q, *grads, grad_k_own, grad_v_own, None, None, None


def pad_blocks(rows: Tensor, block_size: int) -> Tensor:
    """(..., n, d) -> (..., multiple of B, d), zeros behind."""
    short = -rows.shape[-2] % block_size
    return F.pad(rows, (0, 0, 0, short)) if short else rows
