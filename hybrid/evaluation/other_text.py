"""A text that a model is scored on in place of that of its run."""

from __future__ import annotations

import argparse
import dataclasses

from hybrid.checkpoints.recorded_data import located
from hybrid.data.config import DataConfig
from hybrid.data.preparing import Data, ShortSplit, prepare
from hybrid.lm import LanguageModel
from hybrid.options import shown


def check_length(length: int | None, data: str | None, least: int, seq_len: int) -> None:
    """Raise a ValueError unless rows of `length` tokens, of another text, hold `least` and fit into a context."""
    if length is None:
        return
    if data is None:
        raise ValueError(f"--length: {length} has no effect without --data; rows of a run have data.seq_len")
    if not least <= length <= seq_len:
        raise ValueError(
            f"--length: {length} must be at least {least}, the longest block or prompt, and at most {seq_len}, the "
            "context (data.seq_len)"
        )


def other_corpus(config: DataConfig, arguments: argparse.Namespace) -> DataConfig:
    """Replace the corpus of a run by that of --data."""
    length, named = arguments.length or config.seq_len, {"format": arguments.format, "revision": arguments.revision}
    return dataclasses.replace(config, corpus=arguments.data, seq_len=length, **named)


def prepare_text(lm: LanguageModel, arguments: argparse.Namespace) -> Data:
    """Cut the text of --data into rows of --length tokens, or of the context.

    Raises:
        ValueError: it is missing, unreadable, or holds too little for a row; one line.
    """
    config = other_corpus(lm.config.data, arguments)
    try:
        return located(prepare(config, lm.tokenizer, lm.block_sizes))
    except ShortSplit as error:
        shorter = 2 ** (error.most.bit_length() - 1) if error.most else 0
        way_out = f"add --length {shorter}, or name more text" if shorter >= max(lm.block_sizes) else "name more text"
        raise ValueError(
            f"--data: {shown(config.corpus)} holds less than a row of {config.seq_len} tokens in one of its splits "
            f"(the shorter has {error.most}); {way_out}"
        ) from None
