"""FlexAttention: a predicate compiled into a kernel that skips the tiles that it rules out.

Shape legend: b batch, h heads, g key-value heads, q query rows, k key rows, d head dim, n rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from hybrid.model.masks import Cached, Coordinates, Pattern, TwoStream, may_attend
from hybrid.model.sdpa import SDPA, Kept


@dataclass(frozen=True)
class Flex:
    """FlexAttention: the predicate compiled into a kernel that skips ruled-out tiles. Trains on GPUs.

    Cached generation has few query rows and takes torch's dense kernel. Causal and full passes have kernels of their
    own in torch, which are quicker.
    """

    device: torch.device = torch.device("cpu")
    training: bool = True
    masks: Kept = field(default_factory=Kept, repr=False, compare=False)
    groups_heads: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.device.type != "cuda" and self.training:
            raise ValueError(
                f"model.attention: 'flex' cannot train on {self.device.type} (FlexAttention has no backward there); "
                "use 'sdpa' or 'auto'"
            )

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
        if isinstance(pattern, Cached) or pattern.is_causal or pattern.is_full:
            return SDPA(self.device, self.training)(q, k, v, pattern)
        kernel, mask = flex_kernel(q.device.type), self.block_mask(pattern)
        options = TILES if q.device.type == "cuda" else None
        return kernel(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1], kernel_options=options)

    def block_mask(self, pattern: TwoStream):
        """Return torch's BlockMask; made once per (length, block size, ...) where documents do not enter."""
        return self.masks.get(pattern, lambda: self._block_mask(pattern))

    @staticmethod
    def _block_mask(pattern: TwoStream):
        from torch.nn.attention.flex_attention import create_block_mask

        # Not the pattern itself, since `Kept` would keep it.
        queries, keys, context = _compact(pattern.queries), _compact(pattern.keys), pattern.context

        def mask_mod(row: Tensor, head: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
            return may_attend(_at(queries, row, q_index), _at(keys, row, k_index), context)

        rows = None if pattern.documents is None else pattern.documents.shape[0]
        n_queries, n_keys = len(queries.position), len(keys.position)
        return create_block_mask(mask_mod, rows, None, n_queries, n_keys, device=str(queries.position.device))


def _compact(c: Coordinates) -> Coordinates:
    """Copy coordinates of n rows, to be indexed by tensors alone: (n,), and the documents (b, n).

    An index that is a number would be copied to the device, for which the host waits. Queries and keys that share
    memory, or strides, would be a kind of pattern of their own, which is compiled anew.
    """
    document = None if c.document is None else c.document.to(torch.int32, copy=True)
    position, start, draw = (t[0].to(torch.int32, copy=True) for t in (c.position, c.start, c.draw))
    return Coordinates(position, start, draw, document)


def _at(c: Coordinates, row: Tensor, index: Tensor) -> Coordinates:
    document = None if c.document is None else c.document[row, index]
    return Coordinates(c.position[index], c.start[index], c.draw[index], document)


TILES = {"BLOCK_M": 64, "BLOCK_N": 64}
"""Rows and keys of a tile of the forward kernel. On an H200, at head dim 64, a forward takes 0.36 ms with these and
0.85 ms with those that torch chooses; the backward, whose tiles go by other names, takes the same."""

KERNELS = 64
"""Most kernels of FlexAttention that torch compiles. Its own limit of 8 is less than a run over several block sizes
and lengths needs, and beyond it torch would go on with dense scores, and with a warning at most."""


@cache
def flex_kernel(device_type: str) -> Callable[..., Tensor]:
    """Return FlexAttention, compiled on GPUs (uncompiled it builds dense scores, which is fine for tests on a CPU)."""
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention if device_type == "cpu" else compiled_flex()


def compiled_flex(backend: str = "inductor") -> Callable[..., Tensor]:
    """Compile FlexAttention, always as one graph: where torch compiles no more, that is an error.

    What is returned raises:
        ValueError: there are as many kernels as torch compiles.
    """
    from torch._dynamo import config
    from torch._dynamo.exc import FailOnRecompileLimitHit
    from torch.nn.attention.flex_attention import flex_attention

    config.recompile_limit = max(config.recompile_limit, KERNELS)
    kernel = torch.compile(flex_attention, backend=backend, fullgraph=True)

    def attend(*arguments: Any, **options: Any) -> Tensor:
        try:
            return kernel(*arguments, **options)
        except FailOnRecompileLimitHit as error:
            raise ValueError(
                "model.attention: 'flex' needs a kernel for each kind of pattern, of which torch compiles "
                f"{config.recompile_limit} at most; train on fewer block sizes and lengths, or use 'sdpa'"
            ) from error

    return attend
