"""Build a network from its options: on which device, sharded over which ranks, with which attention backend.

One that cannot fit is refused before any memory is asked for. What is counted is a lower bound: weights, what an
optimizer keeps of each, and the states between the layers, of which a backward pass needs one vector a token and layer,
whatever is computed again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch

from hybrid.model.attention import select_backend
from hybrid.model.config import ModelConfig
from hybrid.model.layers import Layer
from hybrid.model.transformer import Transformer

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def build_model(
    config: ModelConfig, vocab_size: int, end_of_text: int, device: torch.device, *, seed: int | None = None,
    copies: int = 1, shard: Callable[[Transformer], None] | None = None, ranks: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Transformer:  # fmt: skip
    """Build a model on `device`, for training or for inference.

    Args:
        vocab_size: ids of the tokenizer.
        seed: of the initial weights, and the model is to be trained; None: it has no values yet, and is not.
        copies: float32 numbers that training keeps for each weight, the weight included.
        shard: is given the model before it has any storage, to shard it over ranks.
        ranks: their number.
        dtype: of the weights.

    Raises:
        ValueError: the device cannot hold it.
    """
    if device.type != "meta":
        check_weights(config, vocab_size, device, copies, 1 if shard is None else ranks, dtype)
    # On meta only where it must be: what is made there costs the import of torch's compiler, a second.
    has_storage = shard is None and dtype == torch.float32
    with torch.device(device if has_storage else "meta"):
        model = Transformer(config, vocab_size, end_of_text, initialise=False).to(dtype)
    if device.type != "meta":
        if shard is not None:
            shard(model)
        if not has_storage:
            model.to_empty(device=device)
        if seed is not None:
            torch.manual_seed(seed)
            model.reset_parameters()
        model.attend = select_backend(config.attention, device, seed is not None)
    return model


def compiles(choice: str, device: torch.device) -> bool:
    """Return whether layers are compiled on a device: `auto` compiles them on GPUs."""
    return choice == "on" or (choice == "auto" and device.type == "cuda")


def compile_layers(model: Transformer) -> None:
    """Compile the parts of every layer, where they are first called."""
    for layer in model.layers:
        cast(Layer, layer).compile_parts()


def n_parameters(config: ModelConfig, vocab_size: int) -> int:
    """Count the parameters of a `Transformer` that is not built, for a tokenizer of `vocab_size` ids."""
    c, width, kv_width = config, config.n_heads * config.head_width, config.kv_heads * config.head_width
    into_mlp = 2 if c.mlp == "swiglu" else 1
    matrices = 2 * c.dim * width + 2 * c.dim * kv_width + (into_mlp + 1) * c.dim * c.mlp_dim
    biases = c.qkv_bias * (width + 2 * kv_width) + c.mlp_bias * (into_mlp * c.mlp_dim + c.dim)
    norm = c.dim * (2 if c.norm == "layer" else 1)
    norms = 2 * norm + (2 * c.head_width if c.qk_norm else 0)
    vocab_size = c.n_ids(vocab_size)
    rows = vocab_size + (c.mask_token_id is None)
    embeddings = rows * c.dim + (0 if c.tied_embeddings else vocab_size * c.dim)
    return c.n_layers * (matrices + biases + norms) + embeddings + c.latent * c.dim + norm


def check_weights(
    config: ModelConfig, vocab_size: int, device: torch.device, copies: int = 1, ranks: int = 1,
    dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    """Refuse a model that the device cannot hold.

    Args:
        copies: numbers of `dtype` kept for each weight.
        ranks: devices that the model is sharded over.

    Raises:
        ValueError: it needs more memory than there is; the message says how much.
    """
    config.check()
    parameters = n_parameters(config, vocab_size)
    needed = dtype.itemsize * copies * parameters // ranks
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
    """Return the bytes of memory that a device has in all, whoever uses them now."""
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
