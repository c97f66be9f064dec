"""Attention backends: one call, `backend(q, k, v, pattern)`, that agrees with `eager` to rounding.

A backend says when it is constructed what it can't do on that device. Add one to `BACKENDS` and the tests compare it
with the reference.

Shape legend: b batch, h heads, g key-value heads, q query rows, k key rows, d head dim.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor

from hybrid.model.flex import Flex
from hybrid.model.masks import Cached, Pattern, TwoStream
from hybrid.model.sdpa import SDPA
from hybrid.options import needs, pick

log = logging.getLogger(__name__)


class Backend(Protocol):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
        """Attend: q (b, h, q, d), k and v (b, h, k, d) -> (b, h, q, d); every row of `pattern` sees at least one key.

        A backend that has an attribute `groups_heads = True` is given keys and values (b, g, k, d), each shared by
        h / g heads of queries; for others they are repeated.
        """
        ...


@dataclass(frozen=True)
class Eager:
    """The readable reference: dense scores, dense mask, softmax. Any device, any dtype."""

    device: torch.device = torch.device("cpu")
    training: bool = True

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        scores = scores.masked_fill(~pattern.dense()[:, None], -torch.inf)
        return scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(v.dtype) @ v


@dataclass(frozen=True)
class Xformers:
    """xformers' memory_efficient_attention (CUDA). Causal clean streams use its causal bias, the rest a dense one.

    No bias class of xformers is block-causal with a backward; a dense bias has one (the cutlass kernel).
    """

    device: torch.device = torch.device("cpu")
    training: bool = True

    def __post_init__(self) -> None:
        if self.device.type != "cuda":
            raise ValueError(f"model.attention: 'xformers' needs a CUDA device, not {self.device.type}; use 'sdpa'")
        import importlib.util

        if importlib.util.find_spec("xformers") is None:
            raise ValueError("model.attention: 'xformers' is not installed (Linux x86_64 only); use 'sdpa' or 'flex'")

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
        from xformers.ops import memory_efficient_attention

        bias = self.bias(pattern, q.dtype)
        if isinstance(bias, Tensor):
            bias = bias.expand(q.shape[0], q.shape[1], -1, -1)
        rows = [t.transpose(1, 2) for t in (q, k, v)]  # xformers wants (b, rows, h, d)
        return memory_efficient_attention(*rows, attn_bias=bias).transpose(1, 2)

    @staticmethod
    def bias(pattern: Pattern, dtype: torch.dtype):
        """Return the bias: None, a causal bias object, or additive (1 or b, 1, q, k), a slice of aligned storage."""
        if isinstance(pattern, Cached) and pattern.unmasked:
            return None
        if isinstance(pattern, TwoStream) and pattern.is_causal:
            from xformers.ops import LowerTriangularMask

            return LowerTriangularMask()
        allowed = pattern.dense()[:, None]
        n_keys = allowed.shape[-1]
        aligned = -(-n_keys // 8) * 8  # the kernel wants each row of the bias to start at a multiple of 8 elements
        bias = torch.zeros(*allowed.shape[:-1], aligned, dtype=dtype, device=allowed.device)
        return bias[..., :n_keys].masked_fill_(~allowed, -torch.inf)


BACKENDS: dict[str, Any] = {"eager": Eager, "sdpa": SDPA, "flex": Flex, "xformers": Xformers}


def select_backend(name: str, device: torch.device, training: bool) -> Backend:
    """Build the backend `name`; `auto` chooses by device and logs why.

    A trained model does not depend on the backend it was trained with: where that one does not work and there is
    nothing to train, `auto` stands in.

    Raises:
        ValueError: unknown name, or a backend that can't train on this device.
    """
    if name == "auto":
        if device.type == "cuda" and training:
            name, reason = "flex", "training on a GPU: it skips the tiles that the mask rules out"
        elif device.type == "cuda":
            name, reason = "sdpa", "no gradients are needed: torch's kernels serve the cache"
        else:
            name, reason = "sdpa", f"the device is {device.type}"
        log.info("attention: %s (%s)", name, reason)
    pick("model.attention", name, ["auto", *BACKENDS])
    entry = BACKENDS[name]
    try:
        signature(entry).bind(device, training)
    except TypeError as error:
        raise ValueError(
            f"model.attention: {name} cannot be made of a device and whether it trains ({error}); declare the fields "
            "`device` and `training`, in this order"
        ) from None
    try:
        backend = entry(device, training)
        needs("model.attention", backend, "__call__")
        return backend
    except ValueError as error:
        if training:
            raise
        log.warning("%s (nothing is trained, so 'auto' takes its place)", error)
        return select_backend("auto", device, training)
