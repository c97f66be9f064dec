"""The two ways to run the network, which must agree: two streams over whole rows (training), and block by block over a
cache (generation). Everything about MASK, the begin token and which row predicts which token is here.

Shape legend: b batch, N text length, B block size, D noise draws, m masked tokens, p pending rows, l live rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid.cache import KVCache
from hybrid.device import send
from hybrid.frozen import Frozen
from hybrid.masks import Cached, TwoStream
from hybrid.model import Transformer


def two_stream_hidden(
    model: Transformer, tokens: Tensor, masked: Tensor, block_size: int, documents: Tensor | None = None,
    autoregressive: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Hidden states from which the masked tokens are predicted, in one pass.

    The arguments may all be on the host, wherever the model is. How many tokens are masked is counted where the masks
    are; on the host, nobody waits for a GPU to know it.

    Args:
        tokens: (b, N) clean ids.
        masked: (b, D, N) booleans; each noise draw is its own noisy stream, and all share the clean one.
        documents: (b, N), the number of end-of-text tokens before each token, or None for one document.
        autoregressive: (b, N) booleans, tokens also to be predicted from those before them (`context: causal`).

    Returns:
        (m, dim), in the order of `masked.nonzero()`, followed by the rows of `autoregressive.nonzero()`.
    """
    device, documents = model.embedding.weight.device, input_documents(model, tokens, documents)
    pattern = TwoStream(
        length=tokens.shape[1],
        block_size=block_size,
        context=model.config.context,
        prediction=model.config.prediction,
        draws=masked.shape[1],
        documents=None if documents is None else send(documents, device),
        device=device,
        autoregressive=autoregressive is not None,
    )
    clean = with_begin(model, tokens)[:, : pattern.n_clean]
    noisy = torch.where(masked, model.mask_token_id, tokens[:, None]).flatten(1)
    read = pattern.read_rows(masked)
    if autoregressive is not None:
        noisy = torch.cat([noisy, torch.full_like(tokens, model.mask_token_id)], dim=1)
        read = torch.cat([read, pattern.autoregressive_rows(autoregressive)])
    rows = torch.cat([clean, noisy[:, : pattern.n_noisy]], dim=1)
    return model(send(rows, device), pattern.positions, pattern, read=send(read, device))


def with_begin(model: Transformer, tokens: Tensor) -> Tensor:
    """Put the begin token before the text of `next_token` models."""
    if not model.config.begin:
        return tokens
    return F.pad(tokens, (1, 0), value=model.end_of_text)


def input_documents(model: Transformer, tokens: Tensor, documents: Tensor | None) -> Tensor | None:
    """Document of each input row, (b, begin + N). An end-of-text token ends its document as something to predict; as
    an input of a `next_token` model it opens the next one, whose first token is read off it."""
    if documents is None or not model.config.begin:
        return documents
    opening = documents + (tokens == model.end_of_text).to(documents.dtype)
    return torch.cat([documents[:, :1], opening], dim=1)


def block_hidden(
    model: Frozen, cache: KVCache, pending: list[Tensor], live: Tensor, n_live: list[int], block_size: int,
    documents: Tensor | None = None, window: int | None = None,
) -> Tensor:  # fmt: skip
    """Hidden states from which a live block is predicted, over a cache; commits what is pending on the way.

    Row by row, the cache holds `cache.lengths[row]` slots, `pending[row]` are clean tokens behind them (whole finished
    blocks, or the begin token; often the one block that was just finished, or nothing), and the live block follows.
    Rows may be at different blocks.

    Args:
        pending: b tensors of ids, of any lengths.
        live: (b, l) ids of the live block, MASK where unknown.
        n_live: valid positions of each row's live block (a last block may be short).
        documents: (b, slots) document of each slot, or None.
        window: a block and what it sees are at most so many slots; None: all slots before it.

    Returns:
        (b, l, dim): the states that predict the live tokens.
    """
    begin, counts = model.config.begin, [len(p) for p in pending]
    needs_live = not (begin and block_size == 1)  # an ordinary autoregressive step reads no noisy row
    noisy, n_noisy = (live, n_live) if needs_live else (live[:, :0], [0] * len(n_live))
    rows = _Rows(cache.lengths, counts, n_noisy, noisy.shape[1], documents is None)
    slots, pattern = _pattern(model, cache, rows, block_size, documents, window)
    width, device = rows.width, live.device
    tokens = noisy
    if width:
        clean = torch.stack([F.pad(p, (0, width - len(p)), value=model.mask_token_id) for p in pending])
        tokens = torch.cat([clean, noisy], dim=1)
    assert tokens.shape[1], "a forward of no rows"
    hidden = model(tokens, slots, pattern, cache)
    if not begin:
        cache.commit(counts)
        return hidden
    if width:
        last = torch.tensor([max(c - 1, 0) for c in counts], device=device)
        fresh = torch.tensor([c > 0 for c in counts], device=device)[:, None]
        cache.last_hidden = torch.where(
            fresh, hidden[torch.arange(len(counts), device=device), last], cache.last_hidden
        )
    cache.commit(counts)
    first = cache.last_hidden[:, None]
    return torch.cat([first, hidden[:, width:][:, : live.shape[1] - 1]], dim=1) if needs_live else first


class _Rows:
    """Where `[pending ; live]` stand in the cache. Rows that stand alike are laid out once."""

    def __init__(self, lengths: list[int], counts: list[int], n_live: list[int], live: int, may_be_alike: bool):
        alike = set(zip(lengths, counts, n_live, strict=True))
        self.is_alike = may_be_alike and len(alike) == 1 and n_live[0] == live
        places = list(alike) if self.is_alike else list(zip(lengths, counts, n_live, strict=True))
        self.lengths, self.counts, self.n_live = (list(column) for column in zip(*places, strict=True))
        self.width, self.live = max(counts), live
        self.end = max(length + count + n for length, count, n in places)


def _pattern(
    model: Frozen, cache: KVCache, rows: _Rows, block_size: int, documents: Tensor | None, window: int | None
) -> tuple[slice | Tensor, Cached]:
    """The slots of `[pending ; live]`, and who sees which."""
    begin, width = model.config.begin, rows.width
    first_query = 0 if begin else width

    reach = block_size - (window or 0)  # from the start of a row's block to the first slot that it sees
    # What is committed ends where a block ends, so the lengths are the starts of the first blocks here.
    first = 0 if window is None else max(min(rows.lengths) + reach, 0)
    span = slice(first, rows.end)
    if rows.is_alike and width <= (rows.live == 0):  # one block and nothing to commit, or one token
        here = slice(rows.lengths[0], rows.end)
        end = torch.full((1, width + rows.live), rows.end, device=model.device)
        return here, Cached(end, span, unmasked=True, first_query=first_query)
    lengths, counts, sizes = (
        torch.tensor(column, device=model.device)[:, None] for column in (rows.lengths, rows.counts, rows.n_live)
    )
    i, j = (torch.arange(n, device=model.device) for n in (width, rows.live))
    slots = torch.cat([lengths + i, lengths + counts + j], dim=1)
    clean_end = slots[:, :width] + 1
    if model.config.context == "block_causal":
        clean_start = _block_start(slots[:, :width], begin, block_size)
        clean_end = torch.where(slots[:, :width] < begin, clean_end, clean_start + block_size)
    end = torch.cat([clean_end, (lengths + counts + sizes).expand(-1, rows.live)], dim=1)
    start = None if window is None else _block_start(slots, begin, block_size) + reach
    where: slice | Tensor = slice(rows.lengths[0], rows.end)
    if not rows.is_alike:
        # Padding is written to the bin and sees one slot, so that its softmax is finite; nobody reads it.
        is_real = torch.cat([i < counts, j < sizes], dim=1)
        where = slots.masked_fill(~is_real, cache.bin)
        end = end.masked_fill(~is_real, first + 1)
        start = None if start is None else start.masked_fill(~is_real, 0)
    query_document = None
    if documents is not None and isinstance(where, Tensor):
        query_document = documents.gather(1, where.clamp(max=documents.shape[1] - 1))
    pattern = Cached(
        visible_end=end, span=span, visible_start=start, query_document=query_document, slot_document=documents,
        first_query=first_query,
    )  # fmt: skip
    return where, pattern


def _block_start(slots: Tensor, begin: int, block_size: int) -> Tensor:
    """First slot of the block of each of `slots`; the begin token is a block of its own."""
    return (begin + (slots - begin) // block_size * block_size).clamp(min=0)
