"""Attention backends: one call, `backend(q, k, v, pattern)`, that agrees with `eager` to rounding.

A backend says when it is constructed what it can't do on that device. Add one to `BACKENDS` and the tests compare it
with the reference.

Shape legend: b batch, h heads, g key-value heads, q query rows, k key rows, d head dim.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from inspect import signature
from itertools import pairwise
from typing import Any, ClassVar, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid.model.kernels.block_attention import Chunk, chunked_attention
from hybrid.model.masks import Cached, Coordinates, Pattern, TwoStream, may_attend
from hybrid.options import needs, pick

log = logging.getLogger(__name__)


class Backend(Protocol):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
        """Attend: q (b, h, q, d), k and v (b, h, k, d) -> (b, h, q, d); every row of `pattern` sees at least one key.

        A backend that has an attribute `groups_heads = True` is given keys and values (b, g, k, d), each shared by
        h / g heads of queries; for others they are repeated.
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


class Kept:
    """What a backend makes of patterns: for good by their rows where no document enters, else as long as a pattern
    lives, which is the forward that it belongs to."""

    def __init__(self) -> None:
        self._by_rows: dict[Any, Any] = {}
        self._by_pattern: WeakKeyDictionary[TwoStream, dict[Any, Any]] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()  # a copy of a model makes its own

    def get(self, pattern: TwoStream, make: Callable[[], Any], *more: Any) -> Any:
        """Return what `make` gives for this pattern (and `more`, if that matters too), made once."""
        if pattern.documents is None:
            kept, key = self._by_rows, (pattern.rows, pattern.context, pattern.only_read, str(pattern.device), *more)
        else:
            kept, key = self._by_pattern.setdefault(pattern, {}), more
        if key not in kept:
            kept[key] = make()
        return kept[key]


@dataclass(frozen=True)
class SDPA:
    """torch's scaled_dot_product_attention. On a CPU it skips what the two-stream mask rules out, chunk by chunk."""

    device: torch.device = torch.device("cpu")
    training: bool = True
    plans: Kept = field(default_factory=Kept, repr=False, compare=False)
    groups_heads: ClassVar[bool] = True

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
        if isinstance(pattern, Cached):
            mask = None if pattern.unmasked else pattern.dense()[:, None]
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
        k, v = per_query_head(k, q.shape[1]), per_query_head(v, q.shape[1])
        if pattern.is_causal or pattern.is_full:
            return F.scaled_dot_product_attention(q, k, v, is_causal=pattern.is_causal)
        if q.device.type == "cpu" and q.dtype != torch.float16:
            chunks = self.plans.get(pattern, lambda: plan(pattern, q.dtype), q.dtype)
            return chunked_attention(q, k, v, chunks)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=pattern.dense()[:, None])


CHUNK = 64
"""Fewest rows of a chunk. Smaller chunks compute less that is masked, with more calls."""

CHUNKS = 8
"""Most chunks of a stream: those of a long one have more rows."""


def plan(pattern: TwoStream, dtype: torch.dtype) -> list[Chunk]:
    """Cut a pattern into chunks of whole blocks: the rows of a chunk see a prefix of the clean rows and, if they are
    noisy, their own blocks, few keys of many. `dtype` is that of the queries."""
    chunks = []
    for rows in _row_chunks(pattern):
        queries = pattern.queries.map(lambda t, rows=rows: t[:, rows]).as_queries()
        allowed = may_attend(queries, pattern.keys.as_keys(), pattern.context)  # (1 or b, rows, k)
        seen = allowed.any(0).any(0)
        n_clean, n_noisy = pattern.rows.n_clean, pattern.rows.n_noisy
        spans = tuple(_spans(seen, [0, n_clean, n_clean + n_noisy]))
        part = torch.cat([allowed[..., span] for span in spans], dim=-1)
        mask = None
        if not part.all():
            mask = torch.zeros(part.shape, dtype=dtype).masked_fill_(~part, -torch.inf)[:, None]
        chunks.append(Chunk(rows, spans, mask))
    return chunks


def _row_chunks(pattern: TwoStream) -> Iterator[slice]:
    """Cut the query rows: the clean ones, and each noisy stream by itself, at multiples of whole blocks."""
    rows, n_clean = pattern.rows, pattern.n_clean_queries
    size = max(max(CHUNK, rows.length // CHUNKS) // rows.block_size, 1) * rows.block_size
    starts = [0, n_clean, *(n_clean + (i + 1) * rows.length for i in range(len(rows.noisy_block_sizes)))]
    for start, stop in pairwise(starts):
        for first in range(start, stop, size):
            yield slice(first, min(first + size, stop))


def _spans(seen: Tensor, bounds: list[int]) -> Iterator[slice]:
    """Find the span of keys that is needed in each stream."""
    for start, stop in pairwise(bounds):
        needed = seen[start:stop].nonzero()
        if len(needed):
            yield slice(start + int(needed[0]), start + int(needed[-1]) + 1)


@dataclass(frozen=True)
class Flex:
    """FlexAttention: the predicate compiled into a kernel that skips ruled-out tiles. Trains on GPUs.

    Cached generation has few query rows and takes torch's dense kernel.
    """

    device: torch.device = torch.device("cpu")
    training: bool = True
    masks: Kept = field(default_factory=Kept, repr=False, compare=False)

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
        """Return torch's BlockMask; made once per (length, block size, ...) where documents do not enter."""
        return self.masks.get(pattern, lambda: self._block_mask(pattern))

    @staticmethod
    def _block_mask(pattern: TwoStream):
        from torch.nn.attention.flex_attention import create_block_mask

        queries, keys, context = pattern.queries, pattern.keys, pattern.context  # not the pattern: `Kept` would keep it
        n_q, n_k = queries.position.shape[1], keys.position.shape[1]

        def mask_mod(batch: Tensor, head: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
            def at(c: Coordinates, i: Tensor) -> Coordinates:
                document = None if c.document is None else c.document[batch, i]
                return Coordinates(c.position[0, i], c.start[0, i], c.draw[0, i], document)

            return may_attend(at(queries, q_index), at(keys, k_index), context)

        rows = None if pattern.documents is None else pattern.documents.shape[0]
        return create_block_mask(mask_mod, rows, None, n_q, n_k, device=str(queries.position.device))


_compiled: dict[str, Any] = {}


def _flex_kernel(device_type: str):
    """Return FlexAttention, compiled on GPUs (uncompiled it builds dense scores, which is fine for tests on a CPU)."""
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
