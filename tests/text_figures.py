"""Figures of texts by hand, or by `LanguageModel`, for the tests of experiments."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from typing import Any

import torch

from hybrid.lm import LanguageModel


def options(**values: Any) -> argparse.Namespace:
    return argparse.Namespace(**values)


def per_token(lm: LanguageModel, tokens: torch.Tensor, *arguments: Any, **more: Any) -> float:
    result = lm.nll(tokens, *arguments, **more)
    return float(result.nll.sum() / result.tokens.sum())


def entropy(rows: list[list[int]]) -> float:
    """Nats of the tokens of a text, mean over texts."""
    shares = [[n / len(row) for n in Counter(row).values()] for row in rows]
    return sum(-sum(p * math.log(p) for p in row) for row in shares) / len(rows)
