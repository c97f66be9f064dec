"""What must be said of prepared data: tokens that are not the text, and a split that hardly leaves any to train on."""

from __future__ import annotations

import warnings

from hybrid.data.packing import Packed
from hybrid.data.splitting import SPLITS
from hybrid.options import shown

LEAST_OF_TRAINING = 0.75  # of the share of the tokens that training should have: a warning if there is less


def warn_of_losses(packed: Packed, tokenizer: str) -> None:
    """Bits of tokens are bits of text only if the text can be told from the tokens."""
    if packed.is_lossless:
        return
    given_back = [split.given_back for split in packed.splits.values()]
    checked, lost = (sum(entry[name] for entry in given_back) for name in ("checked", "lost"))
    example = next(entry["example"] for entry in given_back if entry["example"])
    warnings.warn(
        f"data.tokenizer: {shown(tokenizer)} does not give the text back: {lost:,} of {checked:,} documents looked at "
        f"come back changed ({example}); there are no bits per byte, and nats per token are those of the changed text",
        stacklevel=3,
    )


def warn_of_little_training(packed: Packed, validation_fraction: float) -> None:
    """Documents are split by number: a few of unequal length may leave the wrong split with most of the text."""
    train, validation = (packed.splits[name].counts.tokens for name in SPLITS)
    if train < LEAST_OF_TRAINING * (1 - validation_fraction) * (train + validation):
        warnings.warn(
            f"data.validation_fraction: {validation_fraction} leaves {train:,} tokens to train on and {validation:,} "
            "to validate, because whole documents are split and these are few or of unequal length; cut long documents "
            "into several, add some, or try another data.validation_fraction",
            stacklevel=3,
        )
