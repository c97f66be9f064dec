"""The likelihood of a sentence that every model of English finds likely, so that wrong weights show."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from hybrid.lm import LanguageModel

SENTENCE = "The sun rises in the east and sets in the west."
DRAWS = 8
"""Noise draws of the bound, for a model that was not trained at block size 1."""


def likelihood_of_a_sentence(lm: LanguageModel) -> str:
    """Say in a line how likely `SENTENCE` is, and how likely it would be by guessing.

    A text that is garbled is nearly always one of weights that were not loaded as they were meant: they guess.
    """
    try:
        tokens = torch.tensor([lm.tokenizer.encode(SENTENCE)[: lm.config.data.seq_len]])
    except ValueError as error:  # a character that the vocabulary lacks
        return f"{SENTENCE!r}: its likelihood is not known: {error}"
    size = 1 if 1 in lm.block_sizes else min(lm.block_sizes[0], tokens.shape[1])
    method = "exact" if size == 1 else "bound"
    nats = float(lm.nll(tokens, size, method, draws=1 if size == 1 else DRAWS).nll) / tokens.shape[1]
    guess = math.log(lm.model.vocab_size)
    return f"{SENTENCE!r}: {nats:.2f} nats a token ({method}, block size {size}); by guessing {guess:.2f}"
