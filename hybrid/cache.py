"""The key-value cache of generation: preallocated, one slot per position, an explicit argument of the forward.

Finished blocks never change, so their keys and values are exact and are computed once. A forward writes the rows it is
given at their slots; only `commit` makes slots permanent, so the live block is overwritten at every denoising step.

Shape legend: b rows of the batch, r rows of one forward, s slots, h key-value heads, d head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class KVCache:
    """Keys (after rotation) and values of all layers, (layers, b, s, h, d); the last slot is a bin for padding."""

    keys: Tensor
    values: Tensor
    lengths: list[int]  # committed slots of each row; on the host, so that nothing waits for the device
    last_hidden: Tensor  # (b, dim): hidden state of each row's last committed token
    span: int = 0  # slots that the next attention reads

    @classmethod
    def empty(cls, model, rows: int, slots: int) -> KVCache:
        """A cache for `rows` rows of at most `slots` positions each."""
        weight = model.embedding.weight
        dtype = model.compute_dtype(weight.device)
        shape = (len(model.layers), rows, slots + 1, model.config.kv_heads, model.config.head_dim)
        keys, values = (torch.zeros(shape, device=weight.device, dtype=dtype) for _ in range(2))
        return cls(
            keys, values, [0] * rows, torch.zeros(rows, model.config.dim, device=weight.device, dtype=weight.dtype)
        )

    @property
    def bin(self) -> int:
        """The slot that padding rows are written to; nobody sees it."""
        return self.keys.shape[2] - 1

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (b, r, h, d) at `slots` (b, r); return all keys and values of the span, (b, span, h, d)."""
        rows = torch.arange(slots.shape[0], device=slots.device)[:, None]
        self.keys[layer][rows, slots] = k.to(self.keys.dtype)
        self.values[layer][rows, slots] = v.to(self.values.dtype)
        return self.keys[layer][:, : self.span], self.values[layer][:, : self.span]

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
