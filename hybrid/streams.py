"""The two ways to run the network, which must agree: two streams over whole rows (training), and block by block over a
cache (generation). Everything about MASK, the begin token and which row predicts which token is here.

Shape legend: b batch, N text length, B block size, D noise draws, m masked tokens, p pending rows, l live rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid.cache import KVCache
from hybrid.masks import Cached, TwoStream
from hybrid.model import Transformer


def two_stream_hidden(
    model: Transformer, tokens: Tensor, masked: Tensor, block_size: int, documents: Tensor | None = None,
    autoregressive: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Hidden states from which the masked tokens are predicted, in one pass.

    Args:
        tokens: (b, N) clean ids.
        masked: (b, D, N) booleans; each noise draw is its own noisy stream, and all share the clean one.
        documents: (b, N), the number of end-of-text tokens before each token, or None for one document.
        autoregressive: (b, N) booleans, tokens also to be predicted from those before them (`context: causal`).

    Returns:
        (m, dim), in the order of `masked.nonzero()`, followed by the rows of `autoregressive.nonzero()`.
    """
    pattern = TwoStream(
        length=tokens.shape[1],
        block_size=block_size,
        context=model.config.context,
        prediction=model.config.prediction,
        draws=masked.shape[1],
        documents=input_documents(model, tokens, documents),
        device=tokens.device,
        autoregressive=autoregressive is not None,
    )
    clean = with_begin(model, tokens)[:, : pattern.n_clean]
    noisy = torch.where(masked, model.mask_token_id, tokens[:, None]).flatten(1)
    read = pattern.read_rows(masked)
    if autoregressive is not None:
        noisy = torch.cat([noisy, torch.full_like(tokens, model.mask_token_id)], dim=1)
        read = torch.cat([read, pattern.autoregressive_rows(autoregressive)])
    rows = torch.cat([clean, noisy[:, : pattern.n_noisy]], dim=1)
    return model(rows, pattern.positions, pattern, read=read)


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
    model: Transformer, cache: KVCache, pending: list[Tensor], live: Tensor, n_live: list[int], block_size: int,
    documents: Tensor | None = None,
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

    Returns:
        (b, l, dim): the states that predict the live tokens.
    """
    device, begin = live.device, model.config.begin
    counts = [len(p) for p in pending]
    needs_live = not (begin and block_size == 1)  # an ordinary autoregressive step reads no noisy row
    width = max(counts)
    tokens, slots, visible = _lay_out(model, cache, pending, live if needs_live else live[:, :0], n_live, block_size)
    cache.span = max(
        length + count + (n if needs_live else 0)
        for length, count, n in zip(cache.lengths, counts, n_live, strict=True)
    )
    uniform = width == 0 and len({(a, n) for a, n in zip(cache.lengths, n_live, strict=True)}) == 1
    pattern = Cached(
        visible_end=visible,
        span=cache.span,
        unmasked=uniform and n_live[0] == live.shape[1] and documents is None,
        query_document=None if documents is None else documents.gather(1, slots.clamp(max=documents.shape[1] - 1)),
        slot_document=documents,
        first_query=0 if begin else width,
    )
    assert tokens.shape[1], "a forward of no rows"
    hidden = model(tokens, slots, pattern, cache=cache, slots=slots)
    if not begin:
        cache.commit(counts)
        return hidden
    if width:
        last = torch.tensor([max(c - 1, 0) for c in counts], device=device)
        fresh = torch.tensor([c > 0 for c in counts], device=device)[:, None]
        newest = hidden[torch.arange(len(counts), device=device), last].to(cache.last_hidden.dtype)
        cache.last_hidden = torch.where(fresh, newest, cache.last_hidden)
    cache.commit(counts)
    first = cache.last_hidden[:, None].to(hidden.dtype)
    return torch.cat([first, hidden[:, width:][:, : live.shape[1] - 1]], dim=1) if needs_live else first


def _lay_out(
    model: Transformer, cache: KVCache, pending: list[Tensor], live: Tensor, n_live: list[int], block_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, slots and number of visible slots of the rows `[pending ; live]`, each (b, p + l)."""
    device, begin = live.device, model.config.begin
    width = max(len(p) for p in pending)
    counts = torch.tensor([len(p) for p in pending], device=device)[:, None]
    starts = torch.tensor(cache.lengths, device=device)[:, None]
    clean = torch.stack([F.pad(p, (0, width - len(p)), value=model.mask_token_id) for p in pending])
    i = torch.arange(width, device=device)
    clean_slots = starts + i
    if model.config.context == "causal":
        clean_visible = clean_slots + 1
    else:
        text = clean_slots - begin
        clean_visible = torch.where(text < 0, 1, begin + (text // block_size + 1) * block_size)
    j = torch.arange(live.shape[1], device=device)
    live_slots = starts + counts + j
    sizes = torch.tensor(n_live, device=device)[:, None]
    live_visible = (starts + counts + sizes).expand_as(live_slots)
    is_real = torch.cat([i < counts, j < sizes], dim=1)
    slots = torch.cat([clean_slots, live_slots], dim=1)
    visible = torch.cat([clean_visible.expand_as(clean_slots), live_visible], dim=1)
    tokens = torch.cat([clean, live], dim=1)
    # Padding is written to the bin and sees the first slot, so that its softmax is finite; nobody reads it.
    return tokens, slots.masked_fill(~is_real, cache.bin), visible.masked_fill(~is_real, 1)
