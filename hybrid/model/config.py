"""The options of a network: what checkpoints vary in, and what makes a model hybrid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hybrid.model.rope import ROPE_SCALINGS
from hybrid.options import at_least, build, option


@dataclass
class ModelConfig:
    dim: int = option(256, "width of the residual stream")
    n_layers: int = option(6, "layers")
    n_heads: int = option(4, "query heads")
    n_kv_heads: int | None = option(None, "key and value heads (grouped queries); null: n_heads")
    head_dim: int | None = option(None, "width of a head, even; null: dim / n_heads")
    hidden_dim: int | None = option(None, "width of the MLP; null: 8/3 dim to a multiple of 64 (swiglu), 4 dim (gelu)")
    norm: str = option("rms", "RMSNorm, or LayerNorm with weight and bias", ("rms", "layer"))
    norm_eps: float = option(1e-5, "added to the variance in norms")
    mlp: str = option("swiglu", "gated by SiLU, or GELU (its tanh form)", ("swiglu", "gelu"))
    qkv_bias: bool = option(False, "biases on queries, keys and values")
    mlp_bias: bool = option(False, "biases in the MLP")
    qk_norm: bool = option(True, "RMSNorm on queries and keys")
    tied_embeddings: bool = option(False, "the head shares the embedding's weights")
    rope_theta: float = option(10000.0, "base of the rotary frequencies")
    rope_scaling: Any = option(None, "stretches the rotary frequencies: an entry of ROPE_SCALINGS, or null")
    vocab_size: int | None = option(None, "rows of embedding and head for ids; null: the tokenizer's ids, of which it "
                                    "may have fewer")  # fmt: skip
    begin_token_id: int | None = option(None, "next_token: the id that stands before a text; null: end of text")
    end_token_ids: list[int] | None = option(None, "ids that end a text as end of text does; null: that one alone")
    mask_token_id: int | None = option(None, "an id of the vocabulary that means MASK; null: one behind it")
    ban_mask: bool = option(True, "MASK has no probability; false: it counts as any token does, but is never written")
    context: str = option("block_causal", "what a clean token sees of its own block", ("block_causal", "causal"))
    prediction: str = option("in_place", "where token l is read: at l, or at l-1", ("in_place", "next_token"))
    latent: int = option(0, "random numbers for each MASK, through a layer that starts at zero; 0: none")
    latent_per: str = option("position", "where these are drawn: at each, or once a block", ("position", "block"))
    attention: str = option("auto", "attention backend", ("auto", "eager", "sdpa", "flex", "xformers"))

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def head_width(self) -> int:
        return self.head_dim or self.dim // self.n_heads

    @property
    def mlp_dim(self) -> int:
        if self.hidden_dim is not None:
            return self.hidden_dim
        return -(-8 * self.dim // 3 // 64) * 64 if self.mlp == "swiglu" else 4 * self.dim

    @property
    def begin(self) -> int:
        """1 if a begin token stands before the text, else 0; text token l has rotary position begin + l."""
        return int(self.prediction == "next_token")

    def n_ids(self, of_tokenizer: int) -> int:
        """Return for how many ids embedding and head have a row; those that the tokenizer lacks are padding.

        Raises:
            ValueError: fewer than the tokenizer has.
        """
        if self.vocab_size is not None and self.vocab_size < of_tokenizer:
            raise ValueError(
                f"model.vocab_size: {self.vocab_size} is less than the {of_tokenizer} ids of the tokenizer; give at "
                "least as many, or null"
            )
        return self.vocab_size or of_tokenizer

    def check(self) -> None:
        """Raise a ValueError if the sizes do not fit each other."""
        for key in ("dim", "n_layers", "n_heads", "kv_heads", "head_width", "mlp_dim"):
            at_least(f"model.{key}", getattr(self, key), 1)
        at_least("model.latent", self.latent, 0)
        if self.head_dim is None and (self.dim % self.n_heads or self.head_width % 2):
            raise ValueError(
                f"model.n_heads: {self.n_heads} does not divide model.dim {self.dim} into heads of even size; "
                "choose dim = n_heads * an even number, or set model.head_dim"
            )
        if self.head_width % 2:
            raise ValueError(f"model.head_dim: {self.head_dim} is odd; rotary positions turn pairs, so make it even")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"model.n_kv_heads: {self.n_kv_heads} does not divide model.n_heads {self.n_heads}")
        if not self.norm_eps > 0:
            raise ValueError(f"model.norm_eps: {self.norm_eps!r} must be positive, e.g. 1e-5")
        if self.rope_scaling is not None:
            build(ROPE_SCALINGS, self.rope_scaling, "model.rope_scaling")
            if not self.rope_theta > 1:
                raise ValueError(f"model.rope_theta: {self.rope_theta} has no frequencies to stretch; take one above 1")
        if self.mask_token_id is None and not self.ban_mask:
            raise ValueError(
                "model.ban_mask: false needs model.mask_token_id, an id inside the vocabulary; behind it MASK has no "
                "row in the head"
            )
