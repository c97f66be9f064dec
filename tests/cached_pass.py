"""The hidden states of whole texts by the cached pass, block by block, to hold against the training pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hybrid.model.block_pass import BlockRows, Sight, block_hidden
from hybrid.model.fused import for_inference
from hybrid.model.two_stream import with_begin


def cached_hidden(model, tokens, masked, block_size, starts, documents=None, fuse=True, latent=None):
    """Predict every block from `starts[row]` on with one fused forward per block; rows are at different blocks.

    Returns (b, N, dim), NaN where a row did not go.
    """
    n_texts, n = tokens.shape
    begin = int(model.config.prediction == "next_token")
    n_blocks = -(-n // block_size)
    fused = for_inference(model, model.dtype) if fuse else model
    cache = fused.new_cache(n_texts, n + begin)
    text = with_begin(model, tokens)
    noisy = torch.where(masked, model.mask_token_id, tokens)
    states = torch.full((n_texts, n, model.config.dim), torch.nan, dtype=torch.float64)
    active = list(range(n_texts))
    for i in range(n_blocks):
        going = [r for r in active if starts[r] + i < n_blocks]
        if not going:
            break
        if going != active:
            cache.keep([active.index(r) for r in going])
        active = going
        first = [(starts[r] + i) * block_size for r in active]
        n_live = [min(block_size, n - f) for f in first]
        pending = [text[r, cache.lengths[k] : begin + f] for k, (r, f) in enumerate(zip(active, first, strict=True))]
        live = torch.stack(
            [
                F.pad(noisy[r, f : f + m], (0, block_size - m), value=model.mask_token_id)
                for r, f, m in zip(active, first, n_live, strict=True)
            ]
        )
        own = None if documents is None else F.pad(documents[active], (0, 1), value=-1)
        z = None
        if latent is not None:  # (b, N, numbers)
            ends = [(0, 0, 0, block_size - m) for m in n_live]
            z = torch.stack(
                [F.pad(latent[r, f : f + block_size], end) for r, f, end in zip(active, first, ends, strict=True)]
            )
        rows = BlockRows(cache.lengths, pending, live, n_live, z)
        hidden = block_hidden(fused, cache, rows, Sight(block_size, own))
        for k, (r, f, m) in enumerate(zip(active, first, n_live, strict=True)):
            states[r, f : f + m] = hidden[k, :m]
    return states
