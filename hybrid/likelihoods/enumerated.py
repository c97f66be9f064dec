"""Likelihoods from a table of all masks of a block: 2^B rows of each, so blocks must be short.

`enumerate`   the exact likelihood of decoding in a uniformly random order, marginalised over orders:
              f(S) = 1/|S| sum_{l in S} p(x_l | the rest known) f(S without l). At most the bound in nats.
`best_order`  the best of all orders of each block in hindsight, one token at a time. No decoder reaches it: the order
              is chosen knowing the text.

Shape legend: b rows, N text length, B block size, L positions of a block, s subsets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybrid.likelihoods.base import NO_PROCEDURE, Likelihood, LikelihoodMethod, Rows
from hybrid.likelihoods.exact import exact_nll
from hybrid.model import Transformer
from hybrid.model.kernels.cross_entropy import cross_entropies
from hybrid.model.two_stream import two_stream_hidden

MAX_ENUMERATED = 12
"""Largest block whose 2^B masks are enumerated."""

ROWS_PER_FORWARD = 1 << 15
"""Token rows of a forward when masks are enumerated; bounds the memory."""


@dataclass(frozen=True)
class Enumerate(LikelihoodMethod):
    """The exact likelihood of decoding in a uniformly random order."""

    is_exact_at_1: ClassVar[bool] = True
    max_block_size: ClassVar[int | None] = MAX_ENUMERATED
    takes_all_draws: ClassVar[bool] = True

    def nll(self, model: Transformer, rows: Rows, block_size: int, draws: int | str = 1, seed: int = 0) -> Likelihood:
        check_enumerable(min(block_size, rows.tokens.shape[1]))
        if block_size == 1:  # there is one order
            return Likelihood.without_noise(exact_nll(model, rows), rows, "enumerate")
        return Likelihood.without_noise(sum_over_blocks(model, rows, block_size, any_order_nll), rows, "enumerate")


@dataclass(frozen=True)
class BestOrder(LikelihoodMethod):
    """The best of all orders of each block, chosen when the text is known."""

    relation: ClassVar[str] = NO_PROCEDURE
    note: ClassVar[str] = "the best of several orders, chosen when the text is known: the likelihood of no procedure"
    is_exact_at_1: ClassVar[bool] = True
    max_block_size: ClassVar[int | None] = MAX_ENUMERATED

    def nll(self, model: Transformer, rows: Rows, block_size: int, draws: int | str = 1, seed: int = 0) -> Likelihood:
        check_enumerable(min(block_size, rows.tokens.shape[1]))
        return Likelihood.without_noise(sum_over_blocks(model, rows, block_size, best_order_nll), rows, "best_order")


def check_enumerable(block_size: int) -> None:
    """Raise a ValueError if a block is too long for its masks to be enumerated."""
    if block_size > MAX_ENUMERATED:
        raise ValueError(
            f"block_size: {block_size} is too long to enumerate its 2^{block_size} masks (at most {MAX_ENUMERATED}); "
            "use method='bound' with draws=N, or a smaller block size"
        )


def sum_over_blocks(
    model: Transformer, rows: Rows, block_size: int, combine: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """(b,) nats: the sum over blocks of `combine` of a block's table and targets (`mask_table`)."""
    blocks = mask_table(model, rows, block_size)
    return torch.stack([combine(table, target) for table, target in blocks]).sum(0)


def mask_table(model: Transformer, rows: Rows, block_size: int) -> list[tuple[Tensor, Tensor]]:
    """For each block, log p(x_l | prefix, block tokens outside S) for every set S of masked positions.

    Returns:
        per block of L positions: (b, 2^L, L) float64, bit l of the row index set where l is masked (0 elsewhere), and
        the block's (b, L) targets. Masks that touch a token which is not a target are left at 0 and not to be used.
    """
    tokens, is_target = rows.tokens, rows.is_target
    b, length = tokens.shape
    size = min(block_size, length)
    bits = (torch.arange(2**size, device=tokens.device)[:, None] >> torch.arange(size, device=tokens.device)) & 1
    n_blocks = -(-length // block_size)
    masks = bits.bool().repeat(1, n_blocks)[:, :length]  # (s, N): every block takes the same set at once
    table = torch.zeros(b, 2**size, length, dtype=torch.float64, device=tokens.device)
    chunk = max(1, ROWS_PER_FORWARD // (b * length))
    for start in range(0, len(masks), chunk):
        masked = masks[start : start + chunk].expand(b, -1, -1) & is_target[:, None]
        hidden = two_stream_hidden(model, tokens, masked, block_size, rows.documents)
        row, _, position = masked.nonzero(as_tuple=True)
        part = torch.zeros(masked.shape, dtype=torch.float64, device=tokens.device)
        part[masked] = -cross_entropies(
            hidden, model.head_matrix(), tokens[row, position], model.banned_token_id
        ).double()
        table[:, start : start + chunk] = part
    blocks = []
    for start in range(0, length, block_size):
        stop = min(start + block_size, length)
        blocks.append((table[:, : 2 ** (stop - start), start:stop], is_target[:, start:stop]))
    return blocks


def _subsets(target: Tensor) -> tuple[Tensor, Tensor]:
    """Target flags (b, L) -> sizes (2^L,) of all subsets, and (b, 2^L) booleans: the subset has only targets."""
    size = target.shape[1]
    bits = (torch.arange(2**size, device=target.device)[:, None] >> torch.arange(size, device=target.device)) & 1
    return bits.sum(1), ~((bits.bool()[None] & ~target[:, None]).any(-1))


def enumerated_bound(table: Tensor, target: Tensor) -> Tensor:
    """sum_n E[m_n] over all masks of a block: (b, 2^L, L), (b, L) -> (b,) nats."""
    sizes, usable = _subsets(target)
    mean = -table.sum(-1) / sizes.clamp(min=1)  # (b, 2^L): m_S
    total = torch.zeros(len(table), dtype=torch.float64, device=table.device)
    for n in range(1, target.shape[1] + 1):
        of_size = usable & (sizes == n)
        total += (mean * of_size).sum(1) / of_size.sum(1).clamp(min=1)
    return total


def any_order_nll(table: Tensor, target: Tensor) -> Tensor:
    """-log f(all targets), f(S) = 1/|S| sum_{l in S} p(x_l | rest) f(S - l): (b, 2^L, L), (b, L) -> (b,) nats."""
    return _over_orders(table, target, lambda terms: terms.logsumexp(0) - math.log(len(terms)))


def best_order_nll(table: Tensor, target: Tensor) -> Tensor:
    """-log f(all targets), f(S) = max_{l in S} p(x_l | rest) f(S - l): (b, 2^L, L), (b, L) -> (b,) nats."""
    return _over_orders(table, target, lambda terms: terms.amax(0))


def _over_orders(table: Tensor, target: Tensor, join: Callable[[Tensor], Tensor]) -> Tensor:
    """-log f(all targets), log f(S) = join of log p(x_l | rest) + log f(S - l) over l in S, (|S|, b) -> (b,)."""
    size = target.shape[1]
    sizes, usable = _subsets(target)
    log_f = torch.full((len(table), 2**size), -torch.inf, dtype=torch.float64, device=table.device)
    log_f[:, 0] = 0.0
    for subset in range(1, 2**size):
        members = [i for i in range(size) if subset >> i & 1]
        log_f[:, subset] = join(torch.stack([table[:, subset, i] + log_f[:, subset & ~(1 << i)] for i in members]))
    # The set of all targets differs from row to row; it is the usable subset of the largest size.
    full = (sizes * usable).argmax(1)
    return -log_f.gather(1, full[:, None]).squeeze(1)
