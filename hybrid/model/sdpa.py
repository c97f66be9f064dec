"""torch's attention: grouped heads in the form in which a fused kernel takes them, and on a CPU chunks of the mask.

Shape legend: b batch, h heads, g key-value heads, q query rows, k key rows, d head dim.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid.model.kernels.block_attention import Chunk, chunked_attention
from hybrid.model.masks import Cached, Pattern, TwoStream, may_attend


def per_query_head(keys: Tensor, heads: int) -> Tensor:
    """Repeat keys or values (b, g, k, d) for the heads of queries that share them -> (b, heads, k, d)."""
    return keys if keys.shape[1] == heads else keys.repeat_interleave(heads // keys.shape[1], dim=1)


def over_groups(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """torch's attention: q (b, h, q, d), k and v (b, g, k, d), shared by h / g heads each, mask (1 or b, 1, q, k).

    On CUDA torch's kernels take groups in half precision and without a mask, else it falls back to dense scores. There
    the queries of a group become rows of one head, and nothing is repeated but the mask.
    """
    heads, groups = q.shape[1], k.shape[1]
    if heads == groups or q.device.type == "cpu":
        enable_gqa = heads != groups
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=enable_gqa)
    if not is_causal:
        return as_rows_of_one_head(q, k, v, mask)
    if q.dtype in (torch.bfloat16, torch.float16):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    k, v = per_query_head(k, heads), per_query_head(v, heads)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def as_rows_of_one_head(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """`over_groups`, the queries of a group as rows of one head: (b, g, h / g * q, d) attend to (b, g, k, d)."""
    shared, rows = q.shape[1] // k.shape[1], q.shape[2]
    q = q.unflatten(1, (-1, shared)).flatten(2, 3)
    if mask is not None:
        mask = mask.repeat(1, 1, shared, 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).unflatten(2, (shared, rows)).flatten(1, 2)


@contextmanager
def over_cache(device: torch.device) -> Iterator[None]:
    """Keep torch from cuDNN's attention on a GPU inside the block.

    It plans anew for every number of keys, and generation has more of them at every block; training has the same number
    at every step.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def mask_of(pattern: Cached, q: Tensor) -> Tensor:
    """Return the mask (1 or b, 1, q, span) of a forward over a cache, in the form that the device's kernel takes.

    On a GPU that is what is added to the scores, into which torch would turn booleans anew in every layer.
    """
    if q.device.type != "cuda":
        return pattern.dense()[:, None]
    if (mask := _ADDED.get(pattern)) is None or mask.dtype != q.dtype:
        allowed = pattern.dense()[:, None]
        mask = _ADDED[pattern] = torch.zeros_like(allowed, dtype=q.dtype).masked_fill_(~allowed, -torch.inf)
    return mask


_ADDED: WeakKeyDictionary[Cached, Tensor] = WeakKeyDictionary()
"""Masks of the patterns that live: a pattern is that of all layers of a forward."""

KEPT = 64
"""Patterns without documents whose masks are kept; training with validation has a few."""


class Kept:
    """What a backend makes of patterns: by their rows where no document enters, those of the last `KEPT` patterns, else
    as long as a pattern lives, which is the forward that it belongs to."""

    def __init__(self) -> None:
        self._by_rows: OrderedDict[Any, Any] = OrderedDict()
        self._by_pattern: WeakKeyDictionary[TwoStream, dict[Any, Any]] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()  # a copy of a model makes its own

    def get(self, pattern: TwoStream, make: Callable[[], Any], *more: Any) -> Any:
        """Return what `make` gives for this pattern (and `more`, if that matters too), made once."""
        if pattern.documents is not None:
            of_pattern = self._by_pattern.setdefault(pattern, {})
            if more not in of_pattern:
                of_pattern[more] = make()
            return of_pattern[more]
        key, kept = (pattern.rows, pattern.context, pattern.only_read, str(pattern.device), *more), self._by_rows
        kept[key] = made = kept.pop(key) if key in kept else make()  # the last used stand at the end
        if len(kept) > KEPT:
            kept.popitem(last=False)
        return made


@dataclass(frozen=True)
class SDPA:
    """torch's scaled_dot_product_attention. On a CPU it skips what the two-stream mask rules out, chunk by chunk."""

    device: torch.device = torch.device("cpu")
    training: bool = True
    plans: Kept = field(default_factory=Kept, repr=False, compare=False)
    groups_heads: ClassVar[bool] = True

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
        if isinstance(pattern, Cached):
            mask = None if pattern.unmasked else mask_of(pattern, q)
            with over_cache(q.device):
                return over_groups(q, k, v, mask)
        if q.device.type == "cpu":  # its chunks take no groups, and one sum over them is one rounding for all patterns
            k, v = per_query_head(k, q.shape[1]), per_query_head(v, q.shape[1])
        if pattern.is_causal or pattern.is_full:
            return over_groups(q, k, v, is_causal=pattern.is_causal)
        if q.device.type == "cpu" and q.dtype != torch.float16:
            chunks = self.plans.get(pattern, lambda: plan(pattern, q.dtype), q.dtype)
            return chunked_attention(q, k, v, chunks)
        return over_groups(q, k, v, pattern.dense()[:, None])


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
    starts = list(accumulate([0, n_clean, *(length for length, _ in rows.noisy_streams)]))
    for start, stop in pairwise(starts):
        for first in range(start, stop, size):
            yield slice(first, min(first + size, stop))


def _spans(seen: Tensor, bounds: list[int]) -> Iterator[slice]:
    """Find the span of keys that is needed in each stream."""
    for start, stop in pairwise(bounds):
        needed = seen[start:stop].nonzero()
        if len(needed):
            yield slice(start + int(needed[0]), start + int(needed[-1]) + 1)
