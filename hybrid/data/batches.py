"""Rows of tokens: a split is cut into rows, and each optimizer step trains on a batch of them.

Shapes: R rows, L = seq_len.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from hybrid.data.packing import Counts


@dataclass(frozen=True)
class Batch:
    """Rows of tokens.

    Attributes:
        tokens: int64 [R, L].
        is_target: bool [R, L]; False where a token is given (a prompt), not learned.
        documents: int64 [R, L], from 0 in each row, an end-of-text belonging to the document it closes; None
            without document masking.
    """

    tokens: Tensor
    is_target: Tensor
    documents: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        documents = None if self.documents is None else self.documents.to(device)
        return Batch(self.tokens.to(device), self.is_target.to(device), documents)


def document_numbers(tokens: Tensor, end_of_text: int) -> Tensor:
    """Return the document of each token of rows [R, L], from 0 in each row: end-of-text tokens before it."""
    ends = (tokens == end_of_text).long()
    return ends.cumsum(dim=1) - ends


class PackedTokens:
    """One split: documents one after the other, cut into rows of `seq_len`; a last, shorter row is left out."""

    def __init__(
        self,
        tokens: np.ndarray,
        is_target: np.ndarray | None,
        counts: Counts,
        seq_len: int,
        end_of_text: int,
        document_mask: bool = False,
        is_lossless: bool = True,
    ) -> None:
        self.tokens = tokens  # unsigned [n_tokens]
        self.is_target = is_target  # uint8 [n_tokens], None where every token is a target
        self.counts = counts
        self.seq_len = seq_len
        self.end_of_text = end_of_text
        self.document_mask = document_mask
        self.is_lossless = is_lossless  # whether the tokenizer gives the text back

    @property
    def n_rows(self) -> int:
        return len(self.tokens) // self.seq_len

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def bytes_per_token(self) -> float:
        """Return the UTF-8 bytes per target token."""
        return self.counts.target_bytes / self.counts.target_tokens

    def bits_per_byte(self, nats_per_token: float) -> float | None:
        """nats per token / ln 2 / bytes_per_token; None where the tokens are not the text, so have other bits."""
        return nats_per_token / math.log(2) / self.bytes_per_token if self.is_lossless else None

    @property
    def has_a_document_per_row(self) -> bool:
        """Return whether every row is one document, whole."""
        ends = self.tokens[self.seq_len - 1 :: self.seq_len]
        return self.n_tokens == self.counts.documents * self.seq_len and bool((ends == self.end_of_text).all())

    def count(self, token: int) -> int:
        """Count how often an id stands in the text."""
        size = 1 << 24  # at a time
        return sum(int((self.tokens[i : i + size] == token).sum()) for i in range(0, self.n_tokens, size))

    def rows(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Return rows [R, L] by index (0 to n_rows - 1). Raises IndexError for another index."""
        starts = np.asarray(indices, dtype=np.int64).reshape(-1, 1)
        if starts.size and not (starts.min() >= 0 and starts.max() < self.n_rows):
            raise IndexError(f"rows {starts.min()} to {starts.max()} of {self.n_rows}")
        positions = starts * self.seq_len + np.arange(self.seq_len)
        tokens = torch.from_numpy(self.tokens[positions].astype(np.int64))
        if self.is_target is None:
            is_target = torch.ones_like(tokens, dtype=torch.bool)
        else:
            is_target = torch.from_numpy(self.is_target[positions].astype(bool))
        documents = None
        if self.document_mask:
            documents = document_numbers(tokens, self.end_of_text)
        return Batch(tokens, is_target, documents)


def batch_rows(n_rows: int, batch_rows: int, seed: int, step: int) -> np.ndarray:
    """Return the rows of optimizer step `step`, of all ranks together: int64 [batch_rows].

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
    """Return the slice of a batch that belongs to `rank` of `world`. Raises ValueError if the slices can't be equal."""
    if len(indices) % world:
        raise ValueError(f"a batch of {len(indices)} rows can't be shared equally by {world} ranks; make it a multiple")
    size = len(indices) // world
    return indices[rank * size : (rank + 1) * size]
