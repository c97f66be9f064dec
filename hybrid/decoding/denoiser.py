"""The texts of a batch, and a network that reads them over a cache of its own.

The denoiser, the unconditional branch of guidance and a planner are each one `Network`: they differ in the weights, and
in whether they see the prompts.

Shape legend: r active rows, B block size, V vocabulary, m positions that are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid.decoding.graphs import Replays
from hybrid.device import send
from hybrid.model import Transformer
from hybrid.model.block_pass import BlockRows, Sight, block_hidden, rows_hidden
from hybrid.model.cache import KVCache
from hybrid.model.masks import TwoStream
from hybrid.model.two_stream import check_reads_causally

MAX_SCORES = 1 << 24
"""Attention scores of a head in one forward, about; long prompts are read in pieces, which bounds the memory."""


@dataclass(eq=False)
class Row:
    """One text being generated."""

    index: int  # of the row in the batch
    prompt: list[int]  # MASK where it has gaps
    row_key: int  # what its randomness is keyed by
    start: int  # first position of its live block
    end: int  # behind the last position that is to be written
    n_new: int = 0  # new tokens that are final and wanted
    finish_reason: str | None = None  # of a row that is done


class LiveBlocks:
    """The live blocks of the active rows. `tokens` and `is_masked` (r, B) change as they are denoised.

    The host counts along: `n_wanted` of the positions are valid, and `n_masked` masked.

    Args:
        text: (rows, width) of the whole batch.
        is_given: (rows, width), the tokens of prompts.
        seq_len: where the texts end at the latest.
    """

    def __init__(
        self, rows: list[Row], text: Tensor, is_given: Tensor, block_size: int, seq_len: int, mask_token_id: int
    ):
        device = text.device
        self.rows, self.is_given, self.mask = rows, is_given, mask_token_id
        where = send(torch.tensor([[row.index, row.start, row.end] for row in rows]), device)
        self.index, start, end = where.unsqueeze(-1).unbind(1)  # (r, 1) each
        self.n_valid = [min(block_size, seq_len - row.start) for row in rows]  # what the network reads
        offset = torch.arange(block_size, device=device)
        self.position = start + offset  # (r, B)
        self.is_valid = self.position < end
        self.is_fixed = is_given[self.index, self.position]
        self.places = [(row.row_key, row.start) for row in rows]
        ends = [min(row.start + block_size, row.end) for row in rows]
        self.n_wanted = sum(end - row.start for row, end in zip(rows, ends, strict=True))
        given = [row.prompt[row.start : end] for row, end in zip(rows, ends, strict=True)]
        known = sum(len(tokens) - tokens.count(mask_token_id) for tokens in given)
        self.update(text[self.index, self.position], self.n_wanted - known)

    def update(self, tokens: Tensor, n_masked: int) -> None:
        self.tokens, self.n_masked = tokens, n_masked
        self.is_masked = (tokens == self.mask) & self.is_valid

    def is_open(self, finished_too: bool) -> Tensor:
        """Return (r, B): what may be written and taken back. A finished row stays as it is, in whatever company."""
        free = self.is_valid & ~self.is_fixed
        return free if finished_too else free & self.is_masked.any(-1, keepdim=True)


@dataclass(eq=False)
class Network:
    """A model with what it has read so far of the texts of a batch.

    Args:
        sight: what the rows of a forward see; its documents are those of all texts of the batch.
        cached: False reads everything anew at every forward.
        sees_prompts: False reads every token of a prompt as MASK.
        replays: where the forwards of a block are recorded, over whose cache `cache` is; None: none are.
        recorded: rows of a text in a forward that is recorded, at most; None: those of two blocks.
    """

    model: Transformer
    cache: KVCache
    sight: Sight
    cached: bool = True
    sees_prompts: bool = True
    replays: Replays | None = None
    recorded: int | None = None
    nfe: int = 0

    def read(self, text: Tensor, live: LiveBlocks, tokens: Tensor, latent: Tensor | None = None) -> Tensor:
        """Return hidden states (r, B, dim) that predict the live blocks `tokens` (r, B): one forward, if any.

        `latent` (r, B, model.latent) are random numbers of those that are MASK; None: they are 0.
        Commits the part of `text` (rows, width) before the live blocks that it has not read yet.
        """
        begin, read = self.model.config.begin, self.cache.lengths
        if begin and tokens.shape[1] == 1 and read == [begin + row.start for row in live.rows]:
            return self.cache.last_hidden[:, None]  # of the token before, which was read: no forward
        if not self.cached:
            self.cache.reset()
        if not self.sees_prompts:
            tokens = tokens.masked_fill(live.is_fixed, self.model.mask_token_id)
        self.nfe += 1
        pending = self._all_but_the_last(text, live, tokens)
        return self.forward(BlockRows(self.cache.lengths, pending, tokens, live.n_valid, latent), live)

    def read_causally(self, text: Tensor, live: LiveBlocks, tokens: Tensor) -> Tensor:
        """Return hidden states (r, B, dim) that predict `tokens` (r, B), each off the clean row before it.

        Of a `next_token` network one forward, and one more if something before the live blocks is not read yet. Of an
        `in_place` one, one forward, and one more of each generation in which a block begins a text.

        Raises:
            ValueError: a network whose clean rows do not predict the token behind them.
        """
        check_reads_causally(self.model.config, "read: a causal reading")
        if not self.cached:
            self.cache.reset()
        if not self.sees_prompts:
            tokens = tokens.masked_fill(live.is_fixed, self.model.mask_token_id)
        pending = self._all_but_the_last(text, live, tokens)
        if not self.model.config.begin:
            return self._read_clean(text, live, tokens)
        if any(map(len, pending)):
            self.nfe += 1
            self.forward(BlockRows(self.cache.lengths, pending, tokens, live.n_valid).without_live(), live)
        clean = [row[: n - 1] for row, n in zip(tokens, live.n_valid, strict=True)]
        rows = BlockRows(self.cache.lengths, clean, tokens, live.n_valid).without_live()
        first = self.cache.last_hidden[:, None]
        others = first[:, :0]
        if rows.n_pending:
            self.nfe += 1
            with torch.no_grad():  # without a commit: the next forward writes over these keys and values
                others = self._hidden(self.model, self.cache, rows, replace(self.sight_of(live), block_size=1))
        behind = tokens.shape[1] - 1 - others.shape[1]  # the end of a short last block
        return torch.cat([first, F.pad(others, (0, 0, 0, behind))], dim=1)

    def _read_clean(self, text: Tensor, live: LiveBlocks, tokens: Tensor) -> Tensor:
        """Do as `read_causally` of an `in_place` network; commits what stands before the live blocks.

        The token before a live block is read again if it was committed, since no hidden state of it was kept.
        """
        starts = [row.start for row in live.rows]
        lengths = [min(n, max(start - 1, 0)) for n, start in zip(self.cache.lengths, starts, strict=True)]
        before = [self._unread(text, live, row, n) for row, n in zip(live.rows, lengths, strict=True)]
        clean = [torch.cat([b, row[: n - 1]]) for b, row, n in zip(before, tokens, live.n_valid, strict=True)]
        rows = BlockRows(lengths, clean, tokens, live.n_valid).without_live()
        sight = replace(self.sight_of(live), reads_clean=True)
        # The row that predicts live token j is the j-th of the last n_valid.
        last = send(torch.tensor(rows.counts) - torch.tensor(live.n_valid), tokens.device)
        index = last[:, None] + torch.arange(tokens.shape[1], device=tokens.device)  # (r, B)
        is_first, has_first = index < 0, not all(starts)
        if sight.documents is not None:
            position = live.position.clamp(max=sight.documents.shape[1] - 1)
            here, previous = (sight.documents.gather(1, (position - i).clamp(min=0)) for i in (0, 1))
            is_first, has_first = is_first | (here != previous), True
        hidden = self.alone.expand(*tokens.shape, -1) if has_first else None
        if rows.n_pending:
            self.nfe += 1
            with torch.no_grad():
                found = self._hidden(self.model, self.cache, rows, sight)
            self.cache.lengths = starts
            index = index.clamp(0, rows.n_pending - 1)[..., None].expand(-1, -1, found.shape[-1])
            found = found.gather(1, index)
            hidden = found if hidden is None else torch.where(is_first[..., None], hidden, found)
        assert hidden is not None, "a text without a first token has a row before it"
        return hidden

    def read_behind(
        self, text: Tensor, live: LiveBlocks, tokens: Tensor, latent: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return hidden states (r, dim) that predict the first of each live block off the clean row before it, and
        (r, B, dim) that predict `tokens` (r, B) as `read` does: one forward.

        Commits what stands before the live blocks, of which something must be unread. At block size 1 no MASK is read.
        """
        if self.model.config.begin:
            hidden = self.read(text, live, tokens, latent)
            return hidden[:, 0], hidden
        if not self.cached:
            self.cache.reset()
        pending = self._all_but_the_last(text, live, tokens)
        rows = BlockRows(self.cache.lengths, pending, tokens, live.n_valid, latent)
        if tokens.shape[1] == 1:
            rows = rows.without_live()  # an ordinary autoregressive step
            if not rows.n_pending:
                return self.alone.expand(len(tokens), -1), self.alone.expand(*tokens.shape, -1)
        self.nfe += 1
        hidden = self.clean_hidden(rows, self.sight_of(live))
        self.cache.commit(rows.counts)
        last = send(torch.tensor(rows.counts), hidden.device) - 1
        first = hidden[torch.arange(len(last), device=hidden.device), last.clamp(min=0)]
        is_first, documents = last < 0, self.sight_of(live).documents
        if documents is not None:
            here, before = (documents.gather(1, (live.position[:, :1] - i).clamp(min=0)) for i in (0, 1))
            is_first = is_first | (here != before)[:, 0]
        if documents is not None or not all(rows.counts):
            first = torch.where(is_first[:, None], self.alone, first)
        return first, hidden[:, rows.n_pending :]

    @cached_property
    def alone(self) -> Tensor:
        """(dim,) the hidden state of a MASK that sees nothing: an `in_place` network predicts first tokens off it."""
        self.nfe += 1
        mask = torch.full((1, 1), self.model.mask_token_id, device=self.model.device)
        with torch.no_grad():
            return self.model(mask, TwoStream.of(1, 1, device=mask.device))[0, 0]

    def clean_hidden(self, rows: BlockRows, sight: Sight) -> Tensor:
        """Return hidden states (r, n, dim) of all rows of a forward, the clean ones too; commits nothing."""
        with torch.no_grad():
            return self._hidden(self.model, self.cache, rows, replace(sight, reads_clean=True))

    def forward(self, rows: BlockRows, live: LiveBlocks) -> Tensor:
        """Run the active texts through the network once."""
        with torch.no_grad():
            return block_hidden(self.model, self.cache, rows, self.sight_of(live), self._hidden)

    def _hidden(self, model: Transformer, cache: KVCache, rows: BlockRows, sight: Sight) -> Tensor:
        """Do as `rows_hidden`. Longer forwards differ too much to be recorded: prompts, and all without a cache."""
        most = self.recorded or 2 * self.sight.block_size
        if self.replays is None or rows.n_pending + rows.live.shape[1] > most:
            return rows_hidden(model, cache, rows, sight)
        return self.replays.hidden(model, rows, sight)

    def sight_of(self, live: LiveBlocks) -> Sight:
        documents = self.sight.documents
        return self.sight if documents is None else replace(self.sight, documents=documents[live.index[:, 0]])

    def _all_but_the_last(self, text: Tensor, live: LiveBlocks, tokens: Tensor) -> list[Tensor]:
        """Commit what stands before the live blocks, but for the last piece of each text, which is returned."""
        lengths, pending = self.cache.lengths, self.unread(text, live)
        for pieces in self._pieces(pending):
            self.forward(BlockRows(self.cache.lengths, pieces, tokens, live.n_valid).without_live(), live)
        return pending if self.cache.lengths == lengths else self.unread(text, live)

    def _pieces(self, pending: list[Tensor]) -> Iterator[list[Tensor]]:
        """Yield all but the last piece of long prompts, in whole blocks: attention is quadratic in them."""
        B, window, read = self.sight.block_size, self.sight.window, self.cache.lengths
        longest = max(len(p) for p in pending)
        span = longest + max(read) + B if window is None else 2 * window
        piece = MAX_SCORES // (len(pending) * span)
        if window is not None:
            piece = min(piece, window)
        piece = max(piece // B, 1) * B
        first = [piece + self.model.config.begin * (n == 0) for n in read]
        while any(len(p) > n for p, n in zip(pending, first, strict=True)):
            yield [p[:n] if len(p) > n else p[:0] for p, n in zip(pending, first, strict=True)]
            pending = [p[n:] if len(p) > n else p for p, n in zip(pending, first, strict=True)]
            first = [piece if before else n for before, n in zip(self.cache.lengths, first, strict=True)]

    def unread(self, text: Tensor, live: LiveBlocks) -> list[Tensor]:
        """Return what stands before the live block of each row and is not in the cache."""
        return [self._unread(text, live, row, n) for row, n in zip(live.rows, self.cache.lengths, strict=True)]

    def _unread(self, text: Tensor, live: LiveBlocks, row: Row, length: int) -> Tensor:
        """Return what stands between the `length` slots that the cache holds and the live block of the row."""
        begin = self.model.config.begin
        first = max(length - begin, 0)
        unread = text[row.index, first : row.start]
        if not self.sees_prompts and first < len(row.prompt):
            unread = unread.masked_fill(live.is_given[row.index, first : row.start], self.model.mask_token_id)
        if begin and length == 0:
            unread = F.pad(unread, (1, 0), value=self.model.begin_token_id)
        return unread

    def log_probs(self, hidden: Tensor) -> Tensor:
        """(m, dim) -> (m, V) at temperature 1, in float32 at least."""
        with torch.no_grad():
            logits = self.model.head(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    def writable(self, log_probs: Tensor) -> Tensor:
        """(m, V) without a MASK that lies in the vocabulary: it counts, but is never written."""
        model = self.model
        if model.mask_token_id >= model.vocab_size or model.banned_token_id is not None:
            return log_probs
        return log_probs.index_fill(-1, send(torch.tensor([model.mask_token_id]), log_probs.device), -torch.inf)
