"""Attention backends: one call, `backend(q, k, v, pattern)`, that agrees with `eager` to rounding.

A backend says when it is constructed what it can't do on that device. Add one to `BACKENDS` and the tests compare it
with the reference.

Shape legend: b batch, h heads, g key-value heads, q query rows, k key rows, d head dim, n text rows, B block size.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid.masks import Cached, Coordinates, Pattern, TwoStream, may_attend
from hybrid.options import pick
from hybrid.staircase import Chunk, plan, staircase_attention

log = logging.getLogger(__name__)


class Backend(Protocol):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
        """q (b, h, q, d), k and v (b, h, k, d) -> (b, h, q, d); every row of `pattern` sees at least one key.

        A backend that has an attribute `groups_heads = True` is given keys and values (b, g, k, d) by generation, each
        shared by h / g heads of queries; to others they are repeated.
        """
        ...


def per_query_head(keys: Tensor, heads: int) -> Tensor:
    """Repeat keys or values (b, g, k, d) for the heads of queries that share them -> (b, heads, k, d)."""
    return keys if keys.shape[1] == heads else keys.repeat_interleave(heads // keys.shape[1], dim=1)


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
class SDPA:
    """torch's scaled_dot_product_attention. On a CPU it skips what the two-stream mask rules out (staircase.py)."""

    device: torch.device = torch.device("cpu")
    training: bool = True
    plans: dict[Any, list[Chunk]] = field(default_factory=dict, repr=False)  # chunks and masks by pattern
    groups_heads: ClassVar[bool] = True

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
        if isinstance(pattern, Cached):
            mask = None if pattern.unmasked else pattern.dense()[:, None]
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
        if pattern.is_causal or pattern.is_full:
            return F.scaled_dot_product_attention(q, k, v, is_causal=pattern.is_causal)
        if q.device.type == "cpu" and q.dtype != torch.float16:
            return staircase_attention(q, k, v, self._plan(pattern, q.dtype))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=pattern.dense()[:, None])

    def _plan(self, pattern: TwoStream, dtype: torch.dtype) -> list[Chunk]:
        """Kept for good where no document enters, else for the layers of one forward."""
        plans, key = (self.plans, pattern.key) if pattern.documents is None else (pattern.derived, ())
        if (key, dtype) not in plans:
            plans[key, dtype] = plan(pattern, dtype)
        return plans[key, dtype]


@dataclass(frozen=True)
class Flex:
    """FlexAttention: the predicate compiled into a kernel that skips ruled-out tiles. Trains on GPUs.

    Cached generation has few query rows and takes torch's dense kernel.
    """

    device: torch.device = torch.device("cpu")
    training: bool = True
    masks: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.device.type != "cuda" and self.training:
            raise ValueError(
                f"model.attention: 'flex' cannot train on {self.device.type} (FlexAttention has no backward there); "
                "use 'sdpa' or 'auto'"
            )

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
        if isinstance(pattern, Cached):
            return SDPA(self.device, self.training)(q, k, v, pattern)
        return _flex_kernel(q.device.type)(q, k, v, block_mask=self.block_mask(pattern))

    def block_mask(self, pattern: TwoStream):
        """torch's BlockMask of the pattern; made once per (length, block size, ...) where documents do not enter."""
        masks, key = (self.masks, pattern.key) if pattern.documents is None else (pattern.derived, ())
        if key not in masks:
            masks[key] = self._block_mask(pattern)
        return masks[key]

    @staticmethod
    def _block_mask(pattern: TwoStream):
        from torch.nn.attention.flex_attention import create_block_mask

        queries, keys = pattern.queries, pattern.keys
        n_q, n_k = queries.position.shape[1], keys.position.shape[1]

        def mask_mod(batch: Tensor, head: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
            def at(c: Coordinates, i: Tensor) -> Coordinates:
                document = None if c.document is None else c.document[batch, i]
                return Coordinates(c.position[0, i], c.start[0, i], c.draw[0, i], document)

            return may_attend(at(queries, q_index), at(keys, k_index), pattern.context)

        rows = None if pattern.documents is None else pattern.documents.shape[0]
        return create_block_mask(mask_mod, rows, None, n_q, n_k, device=str(queries.position.device))


_compiled: dict[str, Any] = {}


def _flex_kernel(device_type: str):
    """FlexAttention, compiled on GPUs (uncompiled it builds dense scores, which is fine for tests on a CPU)."""
    from torch.nn.attention.flex_attention import flex_attention

    if device_type == "cpu":
        return flex_attention
    if device_type not in _compiled:
        _compiled[device_type] = torch.compile(flex_attention)
    return _compiled[device_type]


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
        """The attention bias: None, a causal bias object, or additive (1 or b, 1, q, k), a slice of aligned storage."""
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
    try:
        return BACKENDS[name](device, training)
    except ValueError as error:
        if training:
            raise
        log.warning("%s (nothing is trained, so 'auto' takes its place)", error)
        return select_backend("auto", device, training)
