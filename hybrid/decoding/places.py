"""Some positions of the live blocks, and the rows of numbers that belong to them.

Distributions are computed where they are wanted only, (m, V) for m positions of (r, B). How many these are decides the
shape, so a GPU's host would wait for it, unless it knows.

Shape legend: r active rows, B block size, m positions.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor


class Places:
    """The positions at which a mask (r, B) is True, in reading order.

    Args:
        count: how many they are, where the host knows; None: it asks.
    """

    def __init__(self, mask: Tensor, count: int | None = None):
        self.mask, self.count = mask, count

    @cached_property
    def index(self) -> Tensor:
        """(m,) among the r B positions."""
        flat = self.mask.flatten()
        if self.count is None or flat.device.type == "cpu":  # there is nobody to wait for, and it is quicker
            return flat.nonzero().squeeze(1)
        return torch.nonzero_static(flat, size=self.count).squeeze(1)

    @property
    def rows(self) -> Tensor:
        """(m,) the row of each."""
        return self.index // self.mask.shape[1]

    def take(self, values: Tensor) -> Tensor:
        """(r, B, ...) -> (m, ...)"""
        return values.flatten(0, 1).index_select(0, self.index)

    def put(self, values: Tensor, into: Tensor) -> Tensor:
        """Return `into` (r, B) with values (m,) at these positions."""
        return into.masked_scatter(self.mask, values)

    def within(self, others: Places) -> Tensor:
        """(m,) the number that each of these has among `others`, of which they are a part."""
        return (others.mask.flatten().cumsum(0) - 1).index_select(0, self.index)
