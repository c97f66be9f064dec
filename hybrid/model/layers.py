"""Norms, and the layer: attention and an MLP, each behind a norm and with a residual.

One `forward` serves training, whole rows in two streams, and generation, a few rows over a cache. Generation only
multiplies otherwise: `fused.FusedLayer` overrides `project` and `rest`.

Shape legend: b batch, r rows of a forward, q query rows, h heads, g key-value heads, d head dim, m rows that are read.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid.device import autocast_dtype
from hybrid.model.attention import Backend
from hybrid.model.cache import LayerCache
from hybrid.model.config import ModelConfig
from hybrid.model.kernels.elementwise import rms_norm, rotate
from hybrid.model.masks import Pattern
from hybrid.model.sdpa import per_query_head

Angles = tuple[Tensor, Tensor]


class Linear(nn.Linear):
    """A linear map left without values: the network draws its weights in one place, or reads them from a file."""

    def reset_parameters(self) -> None:
        pass


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019), in the dtype that the next multiplication wants."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, autocast_dtype(x))


class LayerNorm(nn.Module):
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias, in the dtype that the next multiplication wants."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.eps).to(autocast_dtype(x))


NORMS = {"rms": RMSNorm, "layer": LayerNorm}


class Layer(nn.Module):
    """x + attention(norm(x)), and to that its MLP(norm(x))."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = c = config
        width, kv_width = c.n_heads * c.head_width, c.kv_heads * c.head_width
        norm = NORMS[c.norm]
        self.attention_norm = norm(c.dim, c.norm_eps)
        self.wq = Linear(c.dim, width, bias=c.qkv_bias)
        self.wk = Linear(c.dim, kv_width, bias=c.qkv_bias)
        self.wv = Linear(c.dim, kv_width, bias=c.qkv_bias)
        self.wo = Linear(width, c.dim, bias=False)
        self.q_norm = RMSNorm(c.head_width, c.norm_eps) if c.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(c.head_width, c.norm_eps) if c.qk_norm else nn.Identity()
        self.mlp_norm = norm(c.dim, c.norm_eps)
        if c.mlp == "swiglu":
            self.w_gate = Linear(c.dim, c.mlp_dim, bias=c.mlp_bias)
        self.w_up = Linear(c.dim, c.mlp_dim, bias=c.mlp_bias)
        self.w_down = Linear(c.mlp_dim, c.dim, bias=c.mlp_bias)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which it multiplies."""
        return autocast_dtype(self.wq.weight)

    def forward(
        self, x: Tensor, angles: Angles, pattern: Pattern, attend: Backend, cache: LayerCache | None = None, *,
        read: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Compute (b, r, dim) -> (b, q, dim), or (m, dim) where `read` gives flat indices into (b, q)."""
        q, k, v = self.project(x, angles, pattern)
        if cache is not None:
            k, v = cache.write(k, v, pattern)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (b, heads, rows, d)
        if not getattr(attend, "groups_heads", False):
            k, v = per_query_head(k, q.shape[1]), per_query_head(v, q.shape[1])
        if v.dtype != q.dtype:  # a rotation may have made more of q and k than of v
            k, v = k.to(q.dtype), v.to(q.dtype)
        out = attend(q, k, v, pattern).transpose(1, 2).flatten(2)  # (b, q, h * d)
        x = pattern.select_queries(x)
        if read is not None:
            # Of indexing by `[read]` the backward sorts the indices on a GPU; this one adds rows.
            x, out = x.flatten(0, 1).index_select(0, read), out.flatten(0, 1).index_select(0, read)
        return self.rest(x, out)

    def project(self, x: Tensor, angles: Angles, pattern: Pattern) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (b, q, h, d) of the selected rows, keys and values (b, r, g, d) of all."""
        y, k, v = self.keys_and_values(x, angles)
        asking = (pattern.select_queries(angles[0]), pattern.select_queries(angles[1]))
        return self.queries(pattern.select_queries(y), asking), k, v

    def keys_and_values(self, x: Tensor, angles: Angles) -> tuple[Tensor, Tensor, Tensor]:
        """Return normalised rows (b, r, dim), and their keys and values (b, r, g, d)."""
        y = self.attention_norm(x)
        k = rotate(self.k_norm(self.wk(y).unflatten(-1, (self.config.kv_heads, -1))), angles)
        return y, k, self.wv(y).unflatten(-1, (self.config.kv_heads, -1))

    def queries(self, y: Tensor, angles: Angles) -> Tensor:
        """Map normalised rows to queries: (b, q, dim) -> (b, q, h, d)."""
        return rotate(self.q_norm(self.wq(y).unflatten(-1, (self.config.n_heads, -1))), angles)

    def rest(self, x: Tensor, out: Tensor) -> Tensor:
        """Add the attention's result `out` (..., h d), then the MLP."""
        x = x + self.wo(out)
        y = self.mlp_norm(x)
        if self.config.mlp == "swiglu":
            return x + self.w_down(F.silu(self.w_gate(y)) * self.w_up(y))
        return x + self.w_down(F.gelu(self.w_up(y), approximate="tanh"))

    def compile_parts(self) -> None:
        """Compile all but the attention, which has kernels of its own and a pattern that differs from step to step."""
        for name in ("keys_and_values", "queries", "rest"):
            setattr(self, name, torch.compile(getattr(self, name)))
