"""Checks of how a Python caller wants texts scored: every error is a ValueError that names the argument."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybrid.arguments import integer
from hybrid.likelihoods import LIKELIHOODS, LikelihoodMethod
from hybrid.likelihoods.orders import Policy
from hybrid.options import build, pick, shown

MAX_DRAWS = 1 << 16
"""All of them are held at once."""


def chosen_likelihood(method: Any) -> LikelihoodMethod:
    """Build the entry of LIKELIHOODS that is meant: by its name, a mapping with its options, or an instance."""
    if not isinstance(method, (Mapping, LikelihoodMethod)):
        pick("method", method, LIKELIHOODS)
    return build(LIKELIHOODS, method, "method")


def with_decoder(likelihood: LikelihoodMethod, decoder: Any, method: Any) -> Policy:
    """Build the likelihood of a decoder's order, if that of an order was asked for."""
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
