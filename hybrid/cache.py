"""The key-value cache of generation: preallocated, one slot per position, an explicit argument of the forward.

Finished blocks never change, so their keys and values are exact and are computed once. A forward writes the rows it is
given at their slots; only `commit` makes slots permanent, so the live block is overwritten at every denoising step.

Shape legend: b rows of the batch, r rows of one forward, s slots, h key-value heads, d head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hybrid.frozen import Frozen


@dataclass
class KVCache:
    """Keys (after rotation) and values of all layers, (layers, b, s, h, d); the last slot is a bin for padding."""

    keys: Tensor
    values: Tensor
    lengths: list[int]  # committed slots of each row; on the host, so that nothing waits for the device
    last_hidden: Tensor  # (b, dim): hidden state of each row's last committed token

    @classmethod
    def empty(cls, model: Frozen, rows: int, slots: int) -> KVCache:
        """A cache for `rows` rows of at most `slots` positions each."""
        shape = (len(model.layers), rows, slots + 1, model.config.kv_heads, model.config.head_dim)
        keys, values = (torch.zeros(shape, device=model.device, dtype=model.dtype) for _ in range(2))
        last_hidden = torch.zeros(rows, model.config.dim, device=model.device, dtype=model.dtype)
        return cls(keys, values, [0] * rows, last_hidden)

    @property
    def n_slots(self) -> int:
        """The bin among them."""
        return self.keys.shape[2]

    @property
    def bin(self) -> int:
        """The slot that padding rows are written to; nobody sees it."""
        return self.n_slots - 1

    def write(self, layer: int, slots: slice | Tensor, k: Tensor, v: Tensor, span: slice) -> tuple[Tensor, Tensor]:
        """Store k and v (b, r, h, d) at `slots`, (b, r) or the same slice for all rows; return the keys and values of
        the slots `span`, (b, span, h, d)."""
        keys, values = self.keys[layer], self.values[layer]
        if isinstance(slots, slice):
            keys[:, slots], values[:, slots] = k, v
        else:
            rows = torch.arange(slots.shape[0], device=slots.device)[:, None]
            keys[rows, slots], values[rows, slots] = k, v
        return keys[:, span], values[:, span]

    def commit(self, counts: list[int]) -> None:
        """Make the `counts[row]` slots behind the committed ones permanent."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def reset(self) -> None:
        self.lengths = [0] * len(self.lengths)

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but these."""
        index = torch.tensor(rows, device=self.keys.device)
        self.keys, self.values = self.keys[:, index], self.values[:, index]
        self.last_hidden = self.last_hidden[index]
        self.lengths = [self.lengths[row] for row in rows]
