"""Checks of what a Python caller asks of `lm.nll`: every error is a ValueError that names the argument."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hybrid.arguments import integer
from hybrid.likelihoods import LIKELIHOODS, LikelihoodMethod
from hybrid.likelihoods.orders import Policy
from hybrid.model import Transformer
from hybrid.options import build, pick, shown

MAX_DRAWS = 1 << 16
"""All of them are held at once."""


def chosen_likelihood(method: Any) -> LikelihoodMethod:
    """The entry of LIKELIHOODS that is meant: by its name, a mapping with its options, or an instance."""
    if not isinstance(method, (Mapping, LikelihoodMethod)):
        pick("method", method, LIKELIHOODS)
    return build(LIKELIHOODS, method, "method")


def with_decoder(likelihood: LikelihoodMethod, decoder: Any, method: Any) -> Policy:
    """The likelihood of a decoder's order, if that of an order was asked for."""
    if not isinstance(likelihood, Policy):
        raise ValueError(f"decoder: only method='policy' reads it, not {method!r}; leave it out")
    return Policy(decoder)


def number_of_draws(draws: int | str, likelihood: LikelihoodMethod, method: Any) -> int | str:
    """`draws` as an int, or "all" where that is possible."""
    if draws == "all" and likelihood.takes_all_draws:
        return draws
    allowed = ", or 'all'" if likelihood.takes_all_draws else f" for method={method!r}"
    number = integer("draws", draws, 1, also=allowed)
    if number > MAX_DRAWS:
        raise ValueError(f"draws: {shown(draws)} is too large; at most {MAX_DRAWS}")
    return number


def checked_tokens(tokens: Any, model: Transformer, seq_len: int) -> Tensor:
    """`tokens`, int64 [batch, length], on the device of the model."""
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.dtype != torch.int64 or tokens.numel() == 0:
        got = f"{list(tokens.shape)} {tokens.dtype}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"tokens: {got} is not a non-empty int64 tensor [batch, length]")
    if tokens.shape[1] > seq_len:
        raise ValueError(f"tokens: rows of {tokens.shape[1]} exceed the context of {seq_len} (data.seq_len); cut them")
    bad = (tokens < 0) | (tokens >= model.vocab_size)
    if bad.any():
        raise ValueError(f"tokens: {int(tokens[bad][0])} is not in the vocabulary (0 to {model.vocab_size - 1})")
    banned = model.banned_token_id
    if banned is not None and (tokens == banned).any():
        raise ValueError(f"tokens: {banned} is MASK, which texts do not hold; give what stands there")
    return tokens.to(model.device)


def checked_targets(is_target: Any, tokens: Tensor) -> Tensor | None:
    """`is_target`, bool of the shape of `tokens`, on their device; None stays None."""
    if is_target is None:
        return None
    if not isinstance(is_target, Tensor) or is_target.dtype != torch.bool or is_target.shape != tokens.shape:
        got = f"{list(is_target.shape)} {is_target.dtype}" if isinstance(is_target, Tensor) else shown(is_target)
        raise ValueError(f"is_target: {got} is not a bool tensor {list(tokens.shape)}, as tokens is")
    return is_target.to(tokens.device)
