"""What a model of given sizes costs: parameters, FLOPs, bytes of activations and of the cache.

FLOPs are those of matrix products, a multiplication and an addition each; of attention, those of the pairs that the
mask allows.

Shape legend: N row length, B block size, D noise draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hybrid.config import Config, resolve_block_sizes
from hybrid.model import ModelConfig, Transformer
from hybrid.model.layers import Layer


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and of what it is trained on."""

    model: ModelConfig
    vocab: int
    seq_len: int
    block_size: int
    draws: int = 1

    @property
    def layer_parameters(self) -> int:
        """Count the parameters of the matrices of one layer."""
        m = self.model
        width, kv_width = m.n_heads * m.head_width, m.kv_heads * m.head_width
        matrices = 3 if m.mlp == "swiglu" else 2
        return m.dim * (2 * width + 2 * kv_width + matrices * m.mlp_dim)

    @property
    def n_blocks(self) -> int:
        return self.seq_len // self.block_size

    def training_flops(self) -> float:
        """Count the FLOPs of an in-place model per token of text, forward and backward.

        The last layer needs only keys and values of the clean rows; behind its attention, and in the head, only the
        masked rows go on: on average (B + 1) / 2B of them.
        """
        m, N, B, D = self.model, self.seq_len, self.block_size, self.draws
        kv = 2 * m.dim * m.kv_heads * m.head_width
        q = m.dim * m.n_heads * m.head_width
        clean, noisy, masked = N - B, D * N, D * N * (B + 1) / (2 * B)
        inner = (m.n_layers - 1) * (clean + noisy) * self.layer_parameters
        last = clean * kv + noisy * (kv + q) + masked * (self.layer_parameters - kv - q)
        products = inner + last + masked * m.dim * self.vocab
        scores = self.pairs(clean=True) * (m.n_layers - 1) + self.pairs(clean=False) * m.n_layers
        return 3 * (2 * products + 4 * m.n_heads * m.head_width * scores) / N

    def pairs(self, clean: bool) -> int:
        """Count the (query, key) pairs that a mask allows: block i of either stream sees i + 1 blocks of B tokens."""
        B, g = self.block_size, self.n_blocks
        return B * B * g * (g - 1) // 2 if clean else self.draws * B * B * g * (g + 1) // 2

    def autoregressive_flops(self) -> float:
        """Count those of the same network as a plain causal model, per token, logits everywhere."""
        m, N = self.model, self.seq_len
        products = m.n_layers * self.layer_parameters + m.dim * self.vocab
        return 3 * (2 * products + 4 * m.n_layers * m.n_heads * m.head_width * (N + 1) / 2)

    def cache_bytes(self) -> int:
        """Count the bytes of keys and values of one token, bf16."""
        return 2 * 2 * self.model.n_layers * self.model.kv_heads * self.model.head_width

    def activation_bytes(self, recompute: bool) -> float:
        """Count the bytes kept for the backward pass, per token of text, under bf16 autocast."""
        rows = (self.seq_len - self.block_size + self.draws * self.seq_len) / self.seq_len
        per_row = kept_per_row(self.model, recompute)
        return rows * self.model.n_layers * per_row


def kept_per_row(model: ModelConfig, recompute: bool) -> float:
    """Ask autograd (on a CPU) how many bytes one layer keeps per row; of attention what a flash kernel keeps."""
    if recompute:
        return 4.0 * model.dim  # the residual stream before each layer
    rows = 64
    kept: dict[int, torch.UntypedStorage] = {}  # by address, and alive, so that no two of them share one

    def pack(t: torch.Tensor) -> torch.Tensor:
        if t.ndim > 2:  # no weights, nor copies of them in bf16
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    layer = Layer(model)
    x = torch.randn(1, rows, model.dim, requires_grad=True)
    angles = torch.zeros(2, 1, rows, 1, model.head_width, dtype=torch.bfloat16).unbind()
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
    with torch.autocast("cpu", dtype=torch.bfloat16), hooks:
        y, k, v = layer.keys_and_values(x, angles)  # type: ignore[arg-type]
        q = layer.queries(y, angles)  # type: ignore[arg-type]
        layer.rest(x, q.flatten(2))
    for t in (q, k, v):
        pack(t)
    return sum(storage.nbytes() for storage in kept.values()) / rows + 4 * model.n_heads


def shape_of(config: Config) -> Shape:
    size = resolve_block_sizes(config.objective.block_size, config.data.seq_len)[0]
    vocab = 257 if config.data.tokenizer == "byte" else config.data.vocab_size
    return Shape(config.model, vocab, config.data.seq_len, size, config.objective.draws)


def parameters_of(config: Config) -> int:
    vocab = shape_of(config).vocab
    with torch.device("meta"):
        return Transformer(config.model, vocab, vocab - 1).n_parameters()
