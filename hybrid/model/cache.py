"""The key-value cache of generation: preallocated, one slot per position, an explicit argument of the forward.

Finished blocks never change, so their keys and values are exact and are computed once. A forward writes the rows it is
given at their slots; only `commit` makes slots permanent, so the live block is overwritten at every denoising step.

Shape legend: b rows of the batch, r rows of one forward, s slots, g key-value heads, d head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybrid.device import send
from hybrid.model.config import ModelConfig
from hybrid.model.masks import Cached, Pattern


class LayerCache(NamedTuple):
    """Keys (after rotation) and values of one layer, (b, s, g, d)."""

    keys: Tensor
    values: Tensor

    def write(self, k: Tensor, v: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
        """Store k and v (b, r, g, d) at the slots of a forward; return those of all slots that it attends to,
        (b, span, g, d)."""
        assert isinstance(pattern, Cached), "a training pass has no cache"
        slots = pattern.slots
        if isinstance(slots, slice):
            self.keys[:, slots], self.values[:, slots] = k, v
        else:
            for memory, new in ((self.keys, k), (self.values, v)):
                memory.flatten(0, 1).index_copy_(0, pattern.flat_slots, new.flatten(0, 1))
        return self.keys[:, pattern.span], self.values[:, pattern.span]


@dataclass
class KVCache:
    """The keys and values of all layers, (layers, b, s, g, d); the last slot is a bin for padding."""

    keys: Tensor
    values: Tensor
    lengths: list[int]  # committed slots of each row; on the host, so that nothing waits for the device
    last_hidden: Tensor  # (b, dim): hidden state of each row's last committed token
    has_last: list[bool]  # False: that state is not known, and the token has to be read again
    last_pattern: tuple[Any, Cached | None] = (None, None)  # of live blocks, which stand still, and where they stand

    @classmethod
    def empty(cls, config: ModelConfig, rows: int, slots: int, device: torch.device, dtype: torch.dtype) -> KVCache:
        """Allocate a cache for `rows` rows of at most `slots` positions each."""
        shape = (config.n_layers, rows, slots + 1, config.kv_heads, config.head_width)
        keys, values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        last_hidden = torch.zeros(rows, config.dim, device=device, dtype=dtype)
        return cls(keys, values, [0] * rows, last_hidden, [False] * rows)

    @property
    def n_slots(self) -> int:
        """Slots of a row, the bin among them."""
        return self.keys.shape[2]

    @property
    def bin(self) -> int:
        """The slot that padding rows are written to; nobody sees it."""
        return self.n_slots - 1

    def layer(self, i: int) -> LayerCache:
        """Return views of the keys and values of layer `i`."""
        return LayerCache(self.keys[i], self.values[i])

    def commit(self, counts: Sequence[int]) -> None:
        """Make the `counts[row]` slots behind the committed ones permanent."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def cut(self, lengths: Sequence[int]) -> None:
        """Forget all but the first `lengths[row]` slots of each row.

        The hidden state of the token that is then the last is not kept: a `next_token` model that predicts from it has
        to read it again, so cut one slot more and give it as pending.

        Raises:
            ValueError: a row has fewer slots than that.
        """
        for row, (now, wanted) in enumerate(zip(self.lengths, lengths, strict=True)):
            if not 0 <= wanted <= now:
                raise ValueError(f"lengths: row {row} holds {now} slots and can't be cut to {wanted}")
            if wanted < now:
                self.has_last[row] = False
        self.lengths = list(lengths)

    def reset(self) -> None:
        """Forget all slots."""
        self.cut([0] * len(self.lengths))

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, given in ascending order.

        The others move up within the same memory: addresses stay, and all of it is freed with the cache.
        """
        n, filled = len(rows), max((self.lengths[row] for row in rows), default=0)
        first = next((k for k, row in enumerate(rows) if row != k), n)
        if first < n:
            index = send(torch.tensor(rows[first:]), self.keys.device)
            for slots in (self.keys[:, :, :filled], self.values[:, :, :filled]):
                slots[:, first:n] = slots.index_select(1, index)
            self.last_hidden[first:n] = self.last_hidden.index_select(0, index)
        self.keys, self.values, self.last_hidden = self.keys[:, :n], self.values[:, :n], self.last_hidden[:n]
        self.lengths = [self.lengths[row] for row in rows]
        self.has_last = [self.has_last[row] for row in rows]
