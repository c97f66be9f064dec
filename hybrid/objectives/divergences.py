"""Divergences of distributions over the vocabulary, from log-probabilities; an id without probability is at -inf.

Each takes log p (m, V), of the teacher, and log q (m, V), of the student, and returns (m,). Where p varies, what q is
best on average depends on the divergence: with `kl_forward` the mean of the targets, with `kl_reverse` their geometric
mean, normalised, which gives little to what any of them finds unlikely, and with `mse` nearly that.

Shape legend: m masked tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def kl_forward(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) = sum_v p_v (log p_v - log q_v), in nats."""
    return _kl(log_p, log_q)


def kl_reverse(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(q || p) = sum_v q_v (log q_v - log p_v), in nats."""
    return _kl(log_q, log_p)


def mse(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Mean over the ids of (log p_v - log q_v)^2; ids without probability under both are left out."""
    known = log_p.isfinite() | log_q.isfinite()
    return torch.where(known, log_p - log_q, 0).square().sum(-1) / known.sum(-1)


def tv(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Total variation: sum_v |p_v - q_v| / 2, of probabilities, from 0 to 1."""
    return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    ratio = torch.where(log_p.isfinite(), log_p - log_q, 0)  # 0 log 0 = 0
    return (log_p.exp() * ratio).sum(-1)


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl_forward": kl_forward, "kl_reverse": kl_reverse, "mse": mse, "tv": tv,
}  # fmt: skip
