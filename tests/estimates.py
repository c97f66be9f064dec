"""Expectations of estimators of the ELBO, enumerated, and means of their draws."""

from __future__ import annotations

import math

import numpy as np
import torch

from hybrid.likelihoods import Rows
from hybrid.likelihoods.enumerated import enumerated_bound, mask_table
from hybrid.objectives.noise import NoiseKeys
from hybrid.objectives.weightings import weigh


def noise_of(rows: int, step: int = 0, total: int | None = None) -> NoiseKeys:
    return NoiseKeys(0, step, torch.arange(rows), 0, rows if total is None else total)


def expected_weighted_loss(model, tokens, block_size, mask_probability):
    """sum over all masks of one block of P(mask, weights) * loss, given {(mask) -> mean weight * probability}."""
    (table, target), *_ = mask_table(model, Rows.of(tokens), block_size)
    total = torch.zeros(len(tokens), dtype=torch.float64)
    for subset in range(1, 2**block_size):
        n = bin(subset).count("1")
        total += mask_probability(n) * -table[:, subset].sum(-1)
    return total, enumerated_bound(table, target)


def gauss_legendre(n):

    x, w = np.polynomial.legendre.leggauss(n)
    return torch.tensor((x + 1) / 2), torch.tensor(w / 2)


def values_of(estimator, model, tokens, block_size: int, n: int, stratified: bool, weighting=None):
    """(rows, n) the losses of n draws, from the enumerated masks; those of a complementary pair are averaged."""
    everything = torch.ones_like(tokens, dtype=torch.bool)
    masking = estimator.draw(NoiseKeys.of_rows(1, torch.arange(len(tokens))), everything, block_size, n, stratified)
    weights = masking.weight
    if weighting is not None:
        weights = weights * weigh(weighting, masking.masked, everything, block_size)
    values = torch.zeros(masking.masked.shape[:2], dtype=torch.float64)
    start = 0
    for table, _ in mask_table(model, Rows.of(tokens), block_size):
        size = table.shape[-1]
        masked, weight = (t[:, :, start : start + size] for t in (masking.masked, weights))
        subset = (masked.long() << torch.arange(size)).sum(-1)
        losses = -table.gather(1, subset[..., None].expand(-1, -1, size))
        values += (losses * weight * masked).sum(-1)
        start += size
    return values.unflatten(1, (-1, 2)).mean(-1) if getattr(estimator, "complementary", False) else values


def assert_mean(values, expected):
    """The mean of each row within 4.5 standard errors (false alarm 7e-6 a row)."""
    error = values.std(1) / math.sqrt(values.shape[1])
    assert ((values.mean(1) - expected).abs() < 4.5 * error).all()
    assert (error < 0.1 * expected).all(), "the test would not notice a bias otherwise"
