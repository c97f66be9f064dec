"""Attention backends: one call, `backend(q, k, v, pattern)`, that agrees with `eager` to rounding.

A backend says when it is constructed what it can't do on that device. Add one to `BACKENDS` and the tests compare it
with the reference.

Shape legend: b batch, h heads, q query rows, k key rows, d head dim, n text rows, B block size.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid.masks import Cached, Coordinates, Pattern, TwoStream, may_attend
from hybrid.merged import PrefixChunk, merged_attention, pad_blocks, prefix_chunks
from hybrid.options import pick

log = logging.getLogger(__name__)


class Backend(Protocol):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
        """q (b, h, q, d), k and v (b, h, k, d) -> (b, h, q, d); every row of `pattern` sees at least one key."""
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
class SDPA:
    """torch's scaled_dot_product_attention. On a CPU it skips what the two-stream mask rules out (see merged.py)."""

    device: torch.device = torch.device("cpu")
    training: bool = True
    plans: dict[Any, Any] = field(default_factory=dict, repr=False)  # chunks and masks by pattern; small, no weights

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
        if isinstance(pattern, Cached):
            mask = None if pattern.unmasked else pattern.dense()[:, None]
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        if q.device.type == "cpu" and q.dtype != torch.float16:
            return self._streams(q, k, v, pattern)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=pattern.dense()[:, None])

    def _streams(self, q: Tensor, k: Tensor, v: Tensor, pattern: TwoStream) -> Tensor:
        q_clean, q_noisy = q.split([pattern.n_clean_queries, pattern.n_noisy], dim=2)
        k_clean, k_noisy = k.split([pattern.n_clean, pattern.n_noisy], dim=2)
        v_clean, v_noisy = v.split([pattern.n_clean, pattern.n_noisy], dim=2)
        outputs = []
        if pattern.n_clean_queries:
            outputs.append(self._clean(q_clean, k_clean, v_clean, pattern))
        if pattern.n_noisy:
            outputs.append(self._noisy(q_noisy, (k_clean, v_clean), (k_noisy, v_noisy), pattern))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)

    def _clean(self, q: Tensor, k: Tensor, v: Tensor, pattern: TwoStream) -> Tensor:
        """Clean rows see clean rows only."""
        simple = pattern.documents is None and not pattern.only_read
        if simple and (pattern.context == "causal" or pattern.block_size == 1):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if pattern.only_read or pattern.documents is not None:
            mask = pattern.dense()[:, None, : q.shape[2], : k.shape[2]]
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        begin = pattern.begin
        first = [v[:, :, :begin]]  # the begin token sees itself alone
        own = k[:, :, begin:, :].unsqueeze(2), v[:, :, begin:, :].unsqueeze(2)
        if k.shape[2] == begin:
            return first[0]
        chunks, own_mask = self._plan(pattern, q.dtype, noisy=False)
        rest = merged_attention(q[:, :, begin:].unsqueeze(2), (k, v), own, chunks, own_mask, pattern.block_size)
        return torch.cat([*first, rest.squeeze(2)], dim=2) if begin else rest.squeeze(2)

    def _noisy(self, q: Tensor, clean: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], pattern: TwoStream) -> Tensor:
        """Noisy rows see the clean blocks before their own, and their own noisy block."""
        if clean[0].shape[2] == 0 and pattern.documents is None:  # one block: ordinary full attention
            whole = [t.unflatten(2, (pattern.draws, -1)).transpose(1, 2).flatten(0, 1) for t in (q, *own)]
            out = F.scaled_dot_product_attention(*whole)
            return out.unflatten(0, (-1, pattern.draws)).transpose(1, 2).flatten(2, 3)
        B, n = pattern.block_size, pattern.length
        q, k_own, v_own = (pad_blocks(t.unflatten(2, (pattern.draws, n)), B).contiguous() for t in (q, *own))
        chunks, own_mask = self._plan(pattern, q.dtype, noisy=True)
        out = merged_attention(q, clean, (k_own, v_own), chunks, own_mask, B)
        return out[:, :, :, :n].flatten(2, 3)

    def _plan(self, pattern: TwoStream, dtype: torch.dtype, noisy: bool) -> tuple[list[PrefixChunk], Tensor | None]:
        """Chunks of the prefix part and the additive mask of the own-block part; kept where no document enters."""
        key = None
        if pattern.documents is None:
            key = (pattern.length, pattern.block_size, pattern.begin, pattern.draws, dtype, noisy)
            if key in self.plans:
                return self.plans[key]
        plan = _prefix_plan(pattern, dtype, noisy), _own_mask(pattern, noisy)
        if key is not None:
            self.plans[key] = plan
        return plan


def _prefix_plan(pattern: TwoStream, dtype: torch.dtype, noisy: bool) -> list[PrefixChunk]:
    """What rows of one copy of the text see of the clean rows in blocks before their own."""
    n = pattern.length if noisy else pattern.n_clean - pattern.begin
    start = pattern.n_clean if noisy else pattern.begin
    keys = pattern.keys
    rows = Coordinates(*(None if t is None else t[:, start : start + n] for t in _fields(keys)))  # type: ignore[arg-type]
    prefix = Coordinates(*(None if t is None else t[:, : pattern.n_clean] for t in _fields(keys)))  # type: ignore[arg-type]
    visible = rows.block[..., :, None] > prefix.block[..., None, :]
    if rows.document is not None and prefix.document is not None:
        visible = visible & (rows.document[..., :, None] == prefix.document[..., None, :])
    padded = -(-n // pattern.block_size) * pattern.block_size  # rows that fill the last block see what its rows see
    visible = torch.cat([visible, visible[:, -1:].expand(-1, padded - n, -1)], dim=1)
    return prefix_chunks(visible, pattern.draws if noisy else 1, pattern.block_size, dtype)


def _own_mask(pattern: TwoStream, noisy: bool) -> Tensor | None:
    """Additive mask inside blocks, (1 or b, 1, 1, g, B, B): padding behind a short last block, other documents."""
    B, n = pattern.block_size, pattern.length
    padded = pattern.n_blocks * B
    if not noisy or (padded == n and pattern.documents is None):
        return None
    valid = (torch.arange(padded) < n).view(1, -1, B)
    allowed = valid[:, :, None, :] | torch.eye(B, dtype=torch.bool)  # padding sees itself, so that no row is empty
    if pattern.documents is not None:
        document = F.pad(pattern.documents[:, pattern.begin :], (0, padded - n), value=-1).unflatten(1, (-1, B))
        allowed = allowed & (document[..., :, None] == document[..., None, :])
    return torch.zeros(allowed.shape).masked_fill_(~allowed, -torch.inf)[:, None, None]


def _fields(c: Coordinates) -> tuple[Tensor | None, ...]:
    return c.position, c.block, c.draw, c.document


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
        from torch.nn.attention.flex_attention import create_block_mask

        key = None
        if pattern.documents is None:
            key = (pattern.length, pattern.block_size, pattern.context, pattern.begin, pattern.draws, pattern.only_read)
            if key in self.masks:
                return self.masks[key]
        queries, keys = pattern.queries, pattern.keys
        n_q, n_k = queries.position.shape[1], keys.position.shape[1]

        def mask_mod(batch: Tensor, head: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
            def at(c: Coordinates, i: Tensor) -> Coordinates:
                document = None if c.document is None else c.document[batch, i]
                return Coordinates(c.position[0, i], c.block[0, i], c.draw[0, i], document)

            return may_attend(at(queries, q_index), at(keys, k_index), pattern.context)

        rows = None if pattern.documents is None else pattern.documents.shape[0]
        mask = create_block_mask(mask_mod, rows, None, n_q, n_k, device=str(queries.position.device))
        if key is not None:
            self.masks[key] = mask
        return mask


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
        if isinstance(pattern, TwoStream):
            causal = pattern.context == "causal" or pattern.block_size == 1
            if pattern.n_noisy == 0 and causal and pattern.documents is None and not pattern.only_read:
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

    Raises:
        ValueError: unknown name, or a backend that can't do this on this device.
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
    return BACKENDS[name](device, training)
