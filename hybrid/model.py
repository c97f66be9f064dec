"""The transformer."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid.options import option


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
