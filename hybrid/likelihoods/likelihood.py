"""Three likelihoods, never confused: the bound, the exact any-order likelihood, and the autoregressive one.

`bound`      the ELBO, by Monte Carlo or with every mask enumerated.
`enumerate`  the exact likelihood of decoding in a uniformly random order, marginalised over orders:
             f(S) = 1/|S| sum_{l in S} p(x_l | the rest known) f(S without l). At most the bound in nats.
`exact`      block size 1: the product of the conditionals.

Shape legend: b rows, D noise draws, N text length, g blocks, B block size, s subsets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hybrid import rng
from hybrid.model import Transformer
from hybrid.model.kernels.cross_entropy import cross_entropies
from hybrid.model.two_stream import two_stream_hidden
from hybrid.objectives.cross_entropy import MaskedLoss, masked_loss
from hybrid.objectives.estimators import Count, Masking
from hybrid.objectives.noise import NoiseKeys
from hybrid.options import pick

METHODS = ("bound", "exact", "enumerate")
MAX_ENUMERATED = 12
"""Largest block whose 2^B masks are enumerated."""

ROWS_PER_FORWARD = 1 << 15
"""Token rows of a forward when masks are enumerated; bounds the memory."""


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihoods in nats per row.

    `stderr` is that of each row's estimate over independent noise draws: 0 where nothing is random, NaN with one draw.
    `tokens` counts the target tokens of each row.
    """

    nll: Tensor  # (b,) float64
    stderr: Tensor  # (b,) float64
    tokens: Tensor  # (b,) int64
    method: str
    blocks: Tensor | None = None  # (b, g) float64, nats of each block; only of a policy


def row_nll(
    model: Transformer,
    tokens: Tensor,
    block_size: int,
    method: str = "bound",
    draws: int | str = 1,
    seed: int = 0,
    documents: Tensor | None = None,
    is_target: Tensor | None = None,
    keys: Tensor | None = None,
) -> Likelihood:
    """Likelihood of each row of `tokens` (b, N).

    Args:
        draws: independent noise draws of a Monte Carlo bound, or "all" to enumerate every mask.
        is_target: (b, N), the tokens that count; the others are given.
        keys: (b,) int64, what each row's noise is keyed by; default: its content, so that the result does not depend on
            the batch.

    Raises:
        ValueError: an unknown method, or one that this block size does not allow.
    """
    pick("method", method, METHODS)
    if draws != "all" and (not isinstance(draws, int) or draws < 1):
        raise ValueError(f"draws: {draws!r} must be an integer of at least 1, or 'all'")
    if method == "exact" and block_size != 1:
        raise ValueError(
            f"method: 'exact' is the likelihood at block size 1, not {block_size}; "
            "ask for block_size=1, or use 'bound' or 'enumerate'"
        )
    if (method == "enumerate" or draws == "all") and method != "exact":
        check_enumerable(min(block_size, tokens.shape[1]))
    is_target = torch.ones_like(tokens, dtype=torch.bool) if is_target is None else is_target
    if block_size == 1:  # one mask per block: all three are the same number, without noise
        nll = _exact(model, tokens, documents, is_target)
        stderr = torch.zeros_like(nll)
    elif method == "enumerate" or draws == "all":
        tables = mask_table(model, tokens, block_size, documents, is_target)
        combine = any_order_nll if method == "enumerate" else enumerated_bound
        nll = torch.stack([combine(table, target) for table, target in tables]).sum(0)
        stderr = torch.zeros_like(nll)
    else:
        assert isinstance(draws, int)
        values, _ = monte_carlo(model, tokens, block_size, draws, seed, documents, is_target, keys)
        nll, stderr = mean_and_error(values)
    return Likelihood(nll, stderr, is_target.sum(1), method)


def check_enumerable(block_size: int) -> None:
    """Raise a ValueError if a block is too long for its masks to be enumerated."""
    if block_size > MAX_ENUMERATED:
        raise ValueError(
            f"block_size: {block_size} is too long to enumerate its 2^{block_size} masks (at most {MAX_ENUMERATED}); "
            "use method='bound' with draws=N, or a smaller block size"
        )


def _exact(model: Transformer, tokens: Tensor, documents: Tensor | None, is_target: Tensor) -> Tensor:
    masked = is_target[:, None]
    loss = masked_loss(model, tokens, Masking(masked, masked.double()), 1, documents)
    return _per_row(loss.cross_entropy.double(), masked)[:, 0]


def _per_row(values: Tensor, masked: Tensor) -> Tensor:
    """Values (m,) of the masked tokens -> their sums (b, D) float64."""
    sums = torch.zeros(masked.shape, dtype=torch.float64, device=masked.device)
    sums[masked] = values.double()
    return sums.sum(-1)


def monte_carlo(
    model: Transformer, tokens: Tensor, block_size: int, draws: int, seed: int,
    documents: Tensor | None, is_target: Tensor, keys: Tensor | None,
) -> tuple[Tensor, MaskedLoss]:  # fmt: skip
    """Independent draws of each row's bound, (b, D) float64 nats, and the cross-entropies they came from.

    Within a draw the counts are stratified over the row's blocks; draws are independent, so they give the error.
    """
    if keys is None:
        keys = torch.tensor(rng.row_keys(tokens.tolist()), device=tokens.device)
    masking = Count().draw(NoiseKeys.of_rows(seed, keys), is_target, block_size, draws, stratified=True)
    loss = masked_loss(model, tokens, masking, block_size, documents)
    return _per_row(loss.cross_entropy.double() * masking.weight[masking.masked], masking.masked), loss


def mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    """(b, D) independent draws -> their mean and its standard error, (b,) each; NaN with one draw."""
    if values.shape[1] == 1:
        return values[:, 0], torch.full_like(values[:, 0], torch.nan)
    return values.mean(1), values.std(1) / math.sqrt(values.shape[1])


def mask_table(
    model: Transformer, tokens: Tensor, block_size: int, documents: Tensor | None, is_target: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """For each block, log p(x_l | prefix, block tokens outside S) for every set S of masked positions.

    Returns:
        per block of L positions: (b, 2^L, L) float64, bit l of the row index set where l is masked (0 elsewhere), and
        the block's (b, L) targets. Masks that touch a token which is not a target are left at 0 and not to be used.
    """
    b, length = tokens.shape
    size = min(block_size, length)
    bits = (torch.arange(2**size, device=tokens.device)[:, None] >> torch.arange(size, device=tokens.device)) & 1
    n_blocks = -(-length // block_size)
    masks = bits.bool().repeat(1, n_blocks)[:, :length]  # (s, N): every block takes the same set at once
    table = torch.zeros(b, 2**size, length, dtype=torch.float64, device=tokens.device)
    chunk = max(1, ROWS_PER_FORWARD // (b * length))
    for start in range(0, len(masks), chunk):
        masked = masks[start : start + chunk].expand(b, -1, -1) & is_target[:, None]
        hidden = two_stream_hidden(model, tokens, masked, block_size, documents)
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
