"""Which rows a step trains on: a function of (seed, step, rank)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def batch_rows(n_rows: int, batch_rows: int, seed: int, step: int) -> np.ndarray:
    """Rows of optimizer step `step`, of all ranks together: int64 [batch_rows].

    Sample k = step * batch_rows + i is entry k % n_rows of a permutation seeded by (seed, k // n_rows): every row
    comes once per epoch, a batch may reach into the next epoch (or several), and resuming needs no replay.
    """
    samples = np.arange(step * batch_rows, (step + 1) * batch_rows, dtype=np.int64)
    epochs, entries = np.divmod(samples, n_rows)
    out = np.empty(batch_rows, dtype=np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        out[chosen] = _permutation(n_rows, seed, int(epoch))[entries[chosen]]
    return out


@lru_cache(maxsize=4)
def _permutation(n_rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n_rows)


def shard(indices: np.ndarray, rank: int, world: int) -> np.ndarray:
    """The slice of a batch that belongs to `rank` of `world`. Raises ValueError if the slices can't be equal."""
    if len(indices) % world:
        raise ValueError(f"a batch of {len(indices)} rows can't be shared equally by {world} ranks; make it a multiple")
    size = len(indices) // world
    return indices[rank * size : (rank + 1) * size]
