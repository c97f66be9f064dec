"""The uniforms of a generation, made ahead: many at once cost as much as a few.

Shape legend: r active rows, B block size, S steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybrid import rng

STEPS, NUMBERS = 16, 256
"""At most so many steps, and about so many numbers of a row, are made at a time."""


class Uniforms:
    """float64 uniforms in [0, 1), keyed by (seed, purpose, row key, position, step) and by nothing else.

    A table holds the next steps of the live block, and of the blocks behind it where blocks are short. It is made anew
    when something is asked for that it does not hold.
    """

    def __init__(self, seed: int, purpose: int, block_size: int):
        self.seed, self.purpose, self.block_size = seed, purpose, block_size
        self.n_steps = min(block_size, STEPS)
        self.n_blocks = max(NUMBERS // (block_size * self.n_steps), 1)
        self.rows: list[tuple[int, int]] = []  # of the table: key and first position
        self.first_step = 0
        self.table = torch.empty(0)

    def at(self, rows: list[tuple[int, int]], step: int, device: torch.device) -> Tensor:
        """(r, B) of rows given by key and first position of their live block."""
        B = self.block_size
        offset = self._offset(rows)
        if offset is None or not self.first_step <= step < self.first_step + self.n_steps:
            offset, self.rows, self.first_step = 0, rows, step
            key, start = (torch.tensor(column, device=device)[:, None, None] for column in zip(*rows, strict=True))
            position = start + torch.arange(self.n_blocks * B, device=device)
            steps = torch.arange(step, step + self.n_steps, device=device)[:, None]
            self.table = rng.uniform(self.seed, self.purpose, key, position, steps)  # (r, S, blocks * B)
        return self.table[:, step - self.first_step, offset : offset + B].contiguous()

    def _offset(self, rows: list[tuple[int, int]]) -> int | None:
        """Where the live blocks stand in the table: all rows have moved on by the same number of blocks, or None."""
        if len(rows) != len(self.rows):
            return None
        moved = rows[0][1] - self.rows[0][1]
        if not 0 <= moved < self.n_blocks * self.block_size:
            return None
        return moved if rows == [(key, start + moved) for key, start in self.rows] else None
