"""The transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU. No time conditioning.

It knows nothing of masking, blocks or generation: rows, their positions and the pattern of who sees whom come as
arguments, and it returns hidden states. The head is apart, so that only rows that are read reach it.

Shape legend: b batch, r rows of a forward, q query rows, k key rows, h heads, d head dim, m rows that are read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hybrid.attention import Backend, Eager, per_query_head
from hybrid.layers import RMSNorm, autocast_dtype, rotary_angles, rotate
from hybrid.masks import TwoStream
from hybrid.options import at_least, option
from hybrid.ranks import spread


@dataclass
class ModelConfig:
    dim: int = option(256, "width of the residual stream")
    n_layers: int = option(6, "layers")
    n_heads: int = option(4, "query heads; dim / n_heads must be even")
    n_kv_heads: int | None = option(None, "key and value heads (grouped queries); null: n_heads")
    hidden_dim: int | None = option(None, "width of the SwiGLU; null: 8/3 dim, rounded up to a multiple of 64")
    qk_norm: bool = option(True, "RMSNorm on queries and keys")
    tied_embeddings: bool = option(False, "the head shares the embedding's weights")
    rope_theta: float = option(10000.0, "base of the rotary frequencies")
    context: str = option("block_causal", "what a clean token sees of its own block", ("block_causal", "causal"))
    prediction: str = option("in_place", "where token l is read: at l, or at l-1", ("in_place", "next_token"))
    attention: str = option("auto", "attention backend", ("auto", "eager", "sdpa", "flex", "xformers"))

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def mlp_dim(self) -> int:
        return self.hidden_dim or -(-8 * self.dim // 3 // 64) * 64

    @property
    def begin(self) -> int:
        """1 if a begin token stands before the text, else 0; text token l has rotary position begin + l."""
        return int(self.prediction == "next_token")

    def check(self) -> None:
        """Raise a ValueError if the sizes do not fit each other."""
        for key in ("dim", "n_layers", "n_heads", "kv_heads", "mlp_dim"):
            at_least(f"model.{key}", getattr(self, key), 1)
        if self.dim % self.n_heads or self.head_dim % 2:
            raise ValueError(
                f"model.n_heads: {self.n_heads} does not divide model.dim {self.dim} into heads of even size; "
                "choose dim = n_heads * an even number"
            )
        if self.n_heads % self.kv_heads:
            raise ValueError(f"model.n_kv_heads: {self.n_kv_heads} does not divide model.n_heads {self.n_heads}")


class Layer(nn.Module):
    """Pre-norm attention and SwiGLU, each with a residual."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        width, kv_width = config.n_heads * config.head_dim, config.kv_heads * config.head_dim
        self.attention_norm = RMSNorm(config.dim)
        self.wq = nn.Linear(config.dim, width, bias=False)
        self.wk = nn.Linear(config.dim, kv_width, bias=False)
        self.wv = nn.Linear(config.dim, kv_width, bias=False)
        self.wo = nn.Linear(width, config.dim, bias=False)
        self.q_norm = RMSNorm(config.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim) if config.qk_norm else nn.Identity()
        self.mlp_norm = RMSNorm(config.dim)
        self.w_gate = nn.Linear(config.dim, config.mlp_dim, bias=False)
        self.w_up = nn.Linear(config.dim, config.mlp_dim, bias=False)
        self.w_down = nn.Linear(config.mlp_dim, config.dim, bias=False)

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], pattern: TwoStream, attend: Backend, *,
        read: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """x (b, r, dim) -> (b, q, dim), or (m, dim) where `read` gives flat indices into (b, q)."""
        y, k, v = self.keys(x, angles)
        x, y = pattern.select_queries(x), pattern.select_queries(y)
        q = self.queries(y, tuple(pattern.select_queries(a) for a in angles))  # type: ignore[arg-type]
        q, k, v = (t.transpose(1, 2).to(q.dtype) for t in (q, k, v))  # (b, h, r, d)
        k, v = (per_query_head(t, self.config.n_heads) for t in (k, v))
        out = attend(q, k, v, pattern).transpose(1, 2).flatten(2)  # (b, q, h * d)
        if read is not None:
            x, out = x.flatten(0, 1)[read], out.flatten(0, 1)[read]
        return self.rest(x, out)

    def keys(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised rows (b, r, dim), and their keys and values (b, r, kv heads, d)."""
        y = self.attention_norm(x)
        k = rotate(self.k_norm(self.wk(y).unflatten(-1, (self.config.kv_heads, -1))), angles)
        return y, k, self.wv(y).unflatten(-1, (self.config.kv_heads, -1))

    def queries(self, y: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """(b, q, dim) -> (b, q, h, d)"""
        return rotate(self.q_norm(self.wq(y).unflatten(-1, (self.config.n_heads, -1))), angles)

    def rest(self, x: Tensor, out: Tensor) -> Tensor:
        """What comes behind the attention, whose result is `out` (..., h d)."""
        x = x + self.wo(out)
        y = self.mlp_norm(x)
        return x + self.w_down(F.silu(self.w_gate(y)) * self.w_up(y))

    def compile_parts(self) -> None:
        """Compile all but the attention, which has kernels of its own and a pattern that differs from step to step."""
        for name in ("keys", "queries", "rest"):
            setattr(self, name, torch.compile(getattr(self, name)))


class Transformer(nn.Module):
    """Token ids and a pattern in, hidden states out; whole rows. Generation runs its copy `Frozen` over a cache.

    Args:
        vocab_size: ids 0..vocab_size-1 can be predicted; the input also knows MASK, id vocab_size.
        end_of_text: the id that ends a document; `next_token` models begin with it.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, end_of_text: int):
        super().__init__()
        config.check()
        self.config = config
        self.vocab_size, self.mask_token_id, self.end_of_text = vocab_size, vocab_size, end_of_text
        self.embedding = nn.Embedding(vocab_size + 1, config.dim)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.final_norm = RMSNorm(config.dim)
        self.head_weight = None if config.tied_embeddings else nn.Parameter(torch.empty(vocab_size, config.dim))
        self.attend: Backend = Eager()
        self.recompute = False  # layers are computed again in the backward pass instead of being kept
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal of standard deviation 1/sqrt(fan-in); what writes to the residual starts smaller with depth.

        Drawn on the CPU, one tensor at a time: the same numbers on every device, also where ranks hold parts of them.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                nn.init.ones_(parameter)
                continue
            std = 0.02
            if name not in ("embedding.weight", "head_weight"):
                depth = math.sqrt(2 * self.config.n_layers) if name.endswith(("wo.weight", "w_down.weight")) else 1
                std = parameter.shape[1] ** -0.5 / depth
            if parameter.device.type != "meta":
                drawn = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu").normal_(std=std)
                with torch.no_grad():
                    parameter.copy_(spread(drawn, parameter))

    def forward(self, tokens: Tensor, positions: Tensor, pattern: TwoStream, *, read: Tensor | None = None) -> Tensor:
        """Hidden states, normalised for the head.

        Args:
            tokens: (b, r) ids, MASK among them.
            positions: (1 or b, r) rotary positions.
            pattern: who sees whom; the last layer computes only the queries of `pattern.reading()`.
            read: flat indices into (b, q), the rows whose hidden state is wanted; None: all of them.

        Returns:
            (m, dim) for `read` of length m, else (b, q, dim).
        """
        x = self.embedding(tokens)
        angles = rotary_angles(positions, self.config.head_dim, self.config.rope_theta, autocast_dtype(x))
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            here = pattern if i < last else pattern.reading()
            rows = read if i == last else None
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, angles, here, self.attend, read=rows, use_reentrant=False)
            else:
                x = layer(x, angles, here, self.attend, read=rows)
        return self.final_norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        """(..., dim) -> logits (..., vocab); MASK has none, so it is never predicted."""
        return F.linear(hidden, self.head_matrix())

    def head_matrix(self) -> Tensor:
        """(vocab, dim)"""
        return self.embedding.weight[: self.vocab_size] if self.head_weight is None else self.head_weight

    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())
