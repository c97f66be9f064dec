"""Texts by the reverse process, step by step, with any of the samplers of `joint_sampler.py`.

Decoders don't work like this (hybrid/decoding): they draw beforehand when each token is revealed. Here every step asks
the sampler, as public code does.

Shape legend: b rows, N text length, L positions of the live block, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hybrid.experiments.reverse_process.joint_sampler import Reveal
from hybrid.model import Transformer
from hybrid.model.two_stream import two_stream_hidden


@dataclass(frozen=True)
class Texts:
    """What one sampler generated with one seed."""

    tokens: Tensor  # (b, N)
    rate: float  # unmaskings relative to their expected number, last steps left out; NaN where there are no others
    forwards: float  # per row: a row whose tokens did not change in a step needs none for the next


@torch.no_grad()
def generate(
    model: Transformer, sampler: Reveal, rows: int, length: int, block_size: int, steps: int, seed: int
) -> Texts:
    """Write texts from an empty prompt, block by block, each in `steps` steps of the linear schedule.

    In step i of T a masked token is revealed with probability q = 1 / (T - i); the last step reveals what is left.
    Predictions of a row are kept while its tokens don't change, which changes nothing but the time.
    """
    generator = torch.Generator().manual_seed(seed)
    mask = model.mask_token_id
    tokens = torch.full((rows, length), mask)
    revealed, expected, forwards = 0, 0.0, 0
    for start in range(0, length, block_size):
        live = tokens[:, start : start + block_size]  # a view: writing to it writes the text
        log_probs = torch.empty(*live.shape, model.vocab_size)
        changed = torch.ones(rows, dtype=torch.bool)
        for step in range(steps):
            row, position = (live == mask).nonzero(as_tuple=True)
            if not len(row):
                break
            stale = (changed & (live == mask).any(1)).nonzero().squeeze(1)
            if len(stale):
                predict(model, tokens, stale, start, block_size, log_probs)
                forwards += len(stale)
            q = 1 / (steps - step)
            law = row * live.shape[1] + position  # rows of the flattened predictions
            which, token = sampler(log_probs.flatten(0, 1), law, q, generator)
            live[row[which], position[which]] = token
            changed = torch.zeros(rows, dtype=torch.bool).index_fill_(0, row[which], True)
            if step < steps - 1:
                revealed, expected = revealed + len(which), expected + len(row) * q
    return Texts(tokens, revealed / expected if expected else math.nan, forwards / rows)


def predict(model: Transformer, tokens: Tensor, rows: Tensor, start: int, block_size: int, log_probs: Tensor) -> None:
    """Write the log-probabilities of the masked positions of the block at `start` into `log_probs` (b, L, V)."""
    text = tokens[rows, : start + log_probs.shape[1]]
    is_masked = text == model.mask_token_id
    hidden = two_stream_hidden(model, text, is_masked[:, None], block_size)
    row, position = is_masked.nonzero(as_tuple=True)
    log_probs[rows[row], position - start] = model.head(hidden).float().log_softmax(-1)
