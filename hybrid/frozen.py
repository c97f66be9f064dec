"""The network as generation runs it: the function of `Transformer` over a cache, without gradients.

A forward of a few rows costs what its weights cost to read and its operations to start, so weights are copied once into
the dtype and the layout in which few rows go through them fastest, and what can be multiplied beforehand is: norms'
weights into the matrices behind them, queries, keys and values into one matrix. `tests/test_streams.py` compares it
with the training pass to 1e-12 in float64.

Shape legend: b batch, r rows, h query heads, g key-value heads, d head dim, s slots.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid.attention import per_query_head
from hybrid.cache import KVCache
from hybrid.layers import RMSNorm, rotary_angles, rotate
from hybrid.masks import Cached
from hybrid.model import Layer, Transformer
from hybrid.ranks import whole


class FrozenLayer(NamedTuple):
    """Matrices are (in, out), and contain the weights of the norm before them."""

    qkv: Tensor  # (dim, (h + 2g) d)
    heads: Tensor | None  # (h + g, d): weights of the norms of queries and keys, if there are any
    wo: Tensor
    gate_up: Tensor  # (dim, 2 mlp_dim)
    down: Tensor


class Frozen:
    """A copy of a model's weights for generation; later changes of the model do not reach it.

    Args:
        dtype: of multiplications, keys and values; the residual stream keeps that of the model.
    """

    def __init__(self, model: Transformer, dtype: torch.dtype | None = None):
        self.config, self.attend = model.config, model.attend
        self.mask_token_id, self.end_of_text = model.mask_token_id, model.end_of_text
        self.embedding = whole(model.embedding.weight.detach())
        self.dtype = dtype or self.embedding.dtype
        self.layers = [_freeze(cast(Layer, layer), self.dtype) for layer in model.layers]
        self.eps = model.final_norm.eps
        self.final_norm = _scale(model.final_norm).to(self.dtype)
        self.head_matrix = _matrix(self.dtype, model.head_matrix())
        self._angles = self.embedding.new_zeros(2, 0, 1, self.config.head_dim, dtype=self.dtype)

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def __call__(self, tokens: Tensor, slots: slice | Tensor, pattern: Cached, cache: KVCache) -> Tensor:
        """Hidden states, normalised for `head`.

        Args:
            tokens: (b, r) ids, MASK among them.
            slots: where the rows' keys and values are kept, (b, r) or the same slice for all; slots are positions. All
                slots of `pattern.span` are attended to.

        Returns:
            (b, q, dim), q the queries of `pattern.reading()`: the last layer computes no others.
        """
        x = F.embedding(tokens, self.embedding)
        angles = self._rotation(slots, cache.n_slots)
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x = self._layer(i, layer, x, angles, pattern if i < last else pattern.reading(), slots, cache)
        return self._normalised(x).to(self.dtype) * self.final_norm

    def head(self, hidden: Tensor) -> Tensor:
        """(..., dim) -> logits (..., vocab)"""
        return hidden @ self.head_matrix

    def _layer(
        self, i: int, layer: FrozenLayer, x: Tensor, angles: tuple[Tensor, Tensor], pattern: Cached,
        slots: slice | Tensor, cache: KVCache,
    ) -> Tensor:  # fmt: skip
        c = self.config
        rows = (self._normalised(x).to(self.dtype) @ layer.qkv).unflatten(-1, (-1, c.head_dim))  # (b, r, h + 2g, d)
        qk, v = rows[:, :, : -c.kv_heads], rows[:, :, -c.kv_heads :]
        if layer.heads is not None:
            qk = self._normalised(qk) * layer.heads
        qk = rotate(qk, angles)
        k, v = cache.write(i, slots, qk[:, :, c.n_heads :], v, pattern.span)
        x, q = pattern.select_queries(x), pattern.select_queries(qk[:, :, : c.n_heads])
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if not getattr(self.attend, "groups_heads", False):
            k, v = (per_query_head(t, c.n_heads) for t in (k, v))
        out = self.attend(q, k, v, pattern)  # (b, h, q, d)
        x = _plus(x, out.transpose(1, 2).flatten(2), layer.wo)
        gate, up = (self._normalised(x).to(self.dtype) @ layer.gate_up).chunk(2, dim=-1)
        return _plus(x, F.silu(gate).mul_(up), layer.down)

    def _normalised(self, x: Tensor) -> Tensor:
        """x / sqrt(sum(x^2) + eps d), the RMS norm without the factor sqrt(d) that is in the weights."""
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        return x / norm.square_().add_(self.eps * x.shape[-1]).sqrt_().to(x.dtype)

    def _rotation(self, slots: slice | Tensor, n_slots: int) -> tuple[Tensor, Tensor]:
        """cos and sin at the positions `slots`, from a table that is made once: (1 or b, r, 1, d) each."""
        if self._angles.shape[1] < n_slots:
            positions = torch.arange(n_slots, device=self.device)[None]
            angles = rotary_angles(positions, self.config.head_dim, self.config.rope_theta, self.dtype)
            self._angles = torch.cat(angles)
        cos, sin = self._angles
        if isinstance(slots, slice):
            return cos[None, slots], sin[None, slots]
        return cos[slots], sin[slots]


def _freeze(layer: Layer, dtype: torch.dtype) -> FrozenLayer:
    heads = None
    if isinstance(layer.q_norm, RMSNorm) and isinstance(layer.k_norm, RMSNorm):
        q, k = (_scale(norm).to(dtype) for norm in (layer.q_norm, layer.k_norm))
        heads = torch.cat([q.expand(layer.config.n_heads, -1), k.expand(layer.config.kv_heads, -1)])
    return FrozenLayer(
        qkv=_matrix(dtype, layer.wq.weight, layer.wk.weight, layer.wv.weight, norm=layer.attention_norm),
        heads=heads,
        wo=_matrix(dtype, layer.wo.weight),
        gate_up=_matrix(dtype, layer.w_gate.weight, layer.w_up.weight, norm=layer.mlp_norm),
        down=_matrix(dtype, layer.w_down.weight),
    )


def _matrix(dtype: torch.dtype, *weights: Tensor, norm: RMSNorm | None = None) -> Tensor:
    """(out, in) weights, one below the other -> (in, out), with the weights of the norm before them."""
    joined = torch.cat([whole(w.detach()) for w in weights])
    if norm is not None:
        joined = joined * _scale(norm)
    return joined.t().to(dtype).contiguous()


def _scale(norm: RMSNorm) -> Tensor:
    """What `_normalised` leaves out."""
    return whole(norm.weight.detach()) * norm.weight.shape[0] ** 0.5


def _plus(x: Tensor, y: Tensor, matrix: Tensor) -> Tensor:
    """x + y @ matrix, in one operation where the dtypes allow it."""
    if x.dtype != matrix.dtype:
        return x + y @ matrix
    return torch.addmm(x.flatten(0, 1), y.flatten(0, 1), matrix).view(x.shape)
