"""What a configuration needs of memory at the least, so that one that cannot fit is refused before it is asked for.

A lower bound: what is counted are weights, what an optimizer keeps of each, and the states between the layers, of which
a backward pass needs one vector a token and layer, whatever is computed again.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from hybrid.model.config import ModelConfig

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def n_parameters(config: ModelConfig, vocab_size: int) -> int:
    """Of a `Transformer` that is not built."""
    c, width, kv_width = config, config.n_heads * config.head_width, config.kv_heads * config.head_width
    into_mlp = 2 if c.mlp == "swiglu" else 1
    matrices = 2 * c.dim * width + 2 * c.dim * kv_width + (into_mlp + 1) * c.dim * c.mlp_dim
    biases = c.qkv_bias * (width + 2 * kv_width) + c.mlp_bias * (into_mlp * c.mlp_dim + c.dim)
    norm = c.dim * (2 if c.norm == "layer" else 1)
    norms = 2 * norm + (2 * c.head_width if c.qk_norm else 0)
    rows = vocab_size + (c.mask_token_id is None)
    embeddings = rows * c.dim + (0 if c.tied_embeddings else vocab_size * c.dim)
    return c.n_layers * (matrices + biases + norms) + embeddings + norm


def check_weights(config: ModelConfig, vocab_size: int, device: torch.device, copies: int = 1, ranks: int = 1) -> None:
    """Refuse a model that the device cannot hold.

    Args:
        copies: float32 numbers kept for each weight.
        ranks: devices that the model is sharded over.

    Raises:
        ValueError: it needs more memory than there is; the message says how much.
    """
    config.check()
    parameters = n_parameters(config, vocab_size)
    needed = 4 * copies * parameters // ranks
    if needed > memory_of(device):
        raise ValueError(
            f"model.dim: {config.dim} with model.n_layers = {config.n_layers} and {vocab_size:,} ids has "
            f"{parameters:,} parameters, which need at least {_gib(needed)} of memory; the device ({device}) has "
            f"{_gib(memory_of(device))}. Make the model smaller"
        )


def check_batch(config: ModelConfig, tokens: int, draws: int, key: str, device: torch.device, layers: int) -> None:
    """Refuse a forward pass, of text tokens and their noisy copies, whose states between layers the device cannot hold.

    Args:
        draws: noisy copies of each token.
        layers: how many layers' states are kept: all of them for a backward pass, else one.

    Raises:
        ValueError: it needs more memory than there is; the message names `key`.
    """
    needed = 2 * config.dim * layers * tokens * (1 + draws)  # in bfloat16
    if needed > memory_of(device):
        raise ValueError(
            f"{key}: {tokens} tokens in one forward, with {draws} noisy copies of each, need at least "
            f"{_gib(needed)} of memory; the device ({device}) has {_gib(memory_of(device))}. Lower it"
        )


def memory_of(device: torch.device) -> int:
    """Bytes of memory of a device in all, whoever uses them now."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limits = [int(text) for path in _LIMITS if (text := _read(path)).isdigit()]
    if hasattr(os, "sysconf"):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=1 << 60)


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
