"""The cached pass of generation: finished blocks are committed and a live block is predicted, over a cache.

A forward has the rows `[pending ; live]`: clean tokens that are not in the cache yet, and the live block behind them.
Texts may be at different blocks. Three questions, three places: where the rows stand (`BlockRows`), at which slots
(`BlockRows.slots`), and what each sees (`Sight`). `two_stream.py` is the training pass, with which it must agree.

Shape legend: b texts of the batch, r rows of a forward, p pending rows, l live rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid.device import send
from hybrid.model.cache import KVCache
from hybrid.model.config import ModelConfig
from hybrid.model.masks import Cached
from hybrid.model.transformer import Transformer

IntOrTensor = TypeVar("IntOrTensor", int, Tensor)


@dataclass(frozen=True)
class BlockRows:
    """Rows of a forward, text by text.

    Args:
        lengths: slots of each text that the cache holds.
        pending: of each text, clean tokens behind them: whole finished blocks, or the begin token; often the one block
            that was just finished, or nothing.
        live: (b, l) ids of the live blocks, MASK where unknown.
        n_live: valid positions of each live block (a last block may be short).
        latent: (b, l, model.latent) random numbers of the live positions, of which those that are MASK have a part;
            None: they are 0.
    """

    lengths: Sequence[int]
    pending: Sequence[Tensor]
    live: Tensor
    n_live: Sequence[int]
    latent: Tensor | None = None

    def without_live(self) -> BlockRows:
        """Return the pending rows alone."""
        return BlockRows(self.lengths, self.pending, self.live[:, :0], [0] * len(self.n_live))

    @cached_property
    def counts(self) -> list[int]:
        """Pending tokens of each text."""
        return [len(tokens) for tokens in self.pending]

    @cached_property
    def n_pending(self) -> int:
        """Rows for pending tokens: those of the text that has most, padding for the others."""
        return max(self.counts)

    @cached_property
    def places(self) -> list[tuple[int, int, int]]:
        """(length, pending tokens, live tokens) of each text."""
        return list(zip(self.lengths, self.counts, self.n_live, strict=True))

    @cached_property
    def are_alike(self) -> bool:
        """Whether all texts stand at the same place, without padding: their rows are then laid out once."""
        return len(set(self.places)) == 1 and self.n_live[0] == self.live.shape[1]

    @property
    def start(self) -> int:
        """First slot of any row."""
        return min(self.lengths)

    @property
    def end(self) -> int:
        """Slot behind the last row."""
        return max(map(sum, self.places))

    def tokens(self, padding: int) -> Tensor:
        """Return the ids of all rows, (b, r)."""
        if not self.n_pending:
            return self.live
        clean = torch.stack(
            [F.pad(tokens, (0, self.n_pending - len(tokens)), value=padding) for tokens in self.pending]
        )
        return torch.cat([clean, self.live], dim=1)

    def latents(self, mask_token_id: int) -> Tensor | None:
        """Return the random numbers of all rows, (b, r, model.latent), 0 where they are not MASK or pending."""
        if self.latent is None:
            return None
        of_masks = self.latent * (self.live == mask_token_id)[..., None]
        return F.pad(of_masks, (0, 0, self.n_pending, 0))

    def slots(self, alike: bool) -> tuple[Tensor, Tensor]:
        """Return each row's slot, and whether it is a token, not padding: (b, r), or (1, r) if they are `alike`."""
        places = self.places[:1] if alike else self.places
        length, count, size = send(torch.tensor(places), self.live.device).unsqueeze(-1).unbind(1)  # (b, 1) each
        i = torch.arange(self.n_pending, device=self.live.device)
        j = torch.arange(self.live.shape[1], device=self.live.device)
        slots = torch.cat([length + i, length + count + j], dim=1)
        return slots, torch.cat([i < count, j < size], dim=1)


@dataclass(frozen=True)
class Sight:
    """What rows attend to in a generation.

    Args:
        documents: (b, slots) document of each slot; None: they are one document.
        window: a block and what it sees are at most so many slots; None: all slots before it.
        reads_clean: hidden states of pending rows are wanted of `in_place` models too.
    """

    block_size: int
    documents: Tensor | None = None
    window: int | None = None
    reads_clean: bool = False

    def first_query(self, rows: BlockRows, config: ModelConfig) -> int:
        """Return how many rows only serve keys and values in the last layer."""
        return 0 if config.begin or self.reads_clean else rows.n_pending

    def first_slot(self, rows: BlockRows, config: ModelConfig) -> int:
        """Return the first slot that anybody sees."""
        if self.window is None:
            return 0
        # What is committed ends where a block ends, unless the cache was cut elsewhere.
        return max(self._first_of_block(rows.start, config.begin) + self.block_size - self.window, 0)

    def pattern(self, rows: BlockRows, config: ModelConfig, cache: KVCache) -> Cached:
        """Return the pattern of a forward. That of live blocks alone is the same at every step, and made once."""
        if rows.n_pending or self.documents is not None:
            return self.new_pattern(rows, config, cache)
        stand = (rows.places, rows.live.shape[1], self.block_size, self.window)
        before, pattern = cache.last_pattern
        if pattern is None or before != stand:
            pattern = self.new_pattern(rows, config, cache)
            cache.last_pattern = stand, pattern
        return pattern

    def new_pattern(self, rows: BlockRows, config: ModelConfig, cache: KVCache, with_slots: bool = False) -> Cached:
        """Make the pattern of a forward; `with_slots` has slots and bounds as tensors, though all texts are alike."""
        alike = self.documents is None and rows.are_alike
        reach = self.block_size - (self.window or 0)  # from the start of a row's block to the first slot that it sees
        first = self.first_slot(rows, config)
        span, n_pending = slice(first, rows.end), rows.n_pending
        first_query = self.first_query(rows, config)
        n_rows = n_pending + rows.live.shape[1]
        if alike and not with_slots and (n_pending == 0 or n_rows == 1):  # one block that sees all of itself
            end = torch.full((1, n_rows), rows.end, device=rows.live.device)
            here = slice(rows.start, rows.end)
            return Cached(here, cache.n_slots, end, span, unmasked=True, first_query=first_query)
        slots, is_token = rows.slots(alike)
        start = self._first_of_block(slots, config.begin).clamp(min=0)
        end = self._block_end(slots, is_token, n_pending, start, config)
        begin = None if self.window is None else start + reach
        where: slice | Tensor = slots if with_slots else slice(rows.start, rows.end)
        if not alike:
            # Padding is written to the bin and sees one slot, so that its softmax is finite; nobody reads it.
            where = slots.masked_fill(~is_token, cache.bin)
            end = end.masked_fill(~is_token, first + 1)
            begin = None if begin is None else begin.masked_fill(~is_token, 0)
        document = None
        if self.documents is not None and isinstance(where, Tensor):
            document = self.documents.gather(1, where.clamp(max=self.documents.shape[1] - 1))
        return Cached(
            where, cache.n_slots, end, span, visible_start=begin, query_document=document,
            slot_document=self.documents, first_query=first_query,
        )  # fmt: skip

    def _first_of_block(self, slots: IntOrTensor, begin: int) -> IntOrTensor:
        """Return the first slot of the block of each slot; below 0 for the begin token, a block of its own."""
        return begin + (slots - begin) // self.block_size * self.block_size

    def _block_end(self, slots: Tensor, is_token: Tensor, n_pending: int, start: Tensor, config: ModelConfig) -> Tensor:
        """Return the slot behind the last that each row sees: its block's, or its own (`causal`, the begin token)."""
        clean = slots[:, :n_pending] + 1
        if config.context == "block_causal":
            is_begin = slots[:, :n_pending] < config.begin
            clean = torch.where(is_begin, clean, start[:, :n_pending] + self.block_size)
        first_live, n_live = slots[:, n_pending:][:, :1], is_token[:, n_pending:].sum(1, keepdim=True)
        return torch.cat([clean, (first_live + n_live).expand(-1, slots.shape[1] - n_pending)], dim=1)


def rows_hidden(model: Transformer, cache: KVCache, rows: BlockRows, sight: Sight) -> Tensor:
    """Compute the hidden states (b, q, dim) of the rows of a forward; `in_place` has none of pending rows, unless
    `sight.reads_clean`."""
    tokens = rows.tokens(padding=model.mask_token_id)
    assert tokens.shape[1], "a forward of no rows"
    latent = rows.latents(model.mask_token_id)
    return model(tokens, sight.pattern(rows, model.config, cache), cache, latent=latent)


def block_hidden(
    model: Transformer, cache: KVCache, rows: BlockRows, sight: Sight, compute: Callable[..., Tensor] = rows_hidden
) -> Tensor:
    """Compute the hidden states (b, l, dim) from which the live blocks are predicted; commit what is pending.

    `compute` stands for `rows_hidden`.
    """
    begin = model.config.begin
    # An ordinary autoregressive step reads no noisy row.
    run = rows.without_live() if begin and rows.live.shape[1] <= 1 else rows
    hidden = compute(model, cache, run, sight)
    if not begin:
        cache.commit(rows.counts)
        return hidden
    _remember_last(cache, hidden, rows.counts)
    cache.commit(rows.counts)
    assert all(cache.has_last) or not rows.live.shape[1], "the last token of a text that was cut has to be read again"
    first = cache.last_hidden[:, None]
    return torch.cat([first, hidden[:, run.n_pending :][:, : rows.live.shape[1] - 1]], dim=1) if run is rows else first


def _remember_last(cache: KVCache, hidden: Tensor, counts: list[int]) -> None:
    """Keep the hidden state of each text's last pending token, off which the first of its live block is read."""
    cache.has_last = [has or count > 0 for has, count in zip(cache.has_last, counts, strict=True)]
    if not any(counts):
        return
    if len(set(counts)) == 1:  # as in a step of one token: the same row of all
        cache.last_hidden = hidden[:, counts[0] - 1].clone()
        return
    pending = send(torch.tensor(counts), hidden.device)
    last = hidden[torch.arange(len(counts), device=hidden.device), (pending - 1).clamp(min=0)]
    cache.last_hidden = torch.where(pending[:, None] > 0, last, cache.last_hidden)
