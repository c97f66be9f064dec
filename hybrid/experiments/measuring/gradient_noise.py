"""Measure the noise of an estimator of the ELBO: mean and variance of its loss and its gradient over draws.

Shape legend: R repeats, each a batch of its own noise on the same text.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybrid.data.batches import Batch
from hybrid.model import Transformer
from hybrid.objectives.cross_entropy import MaskedCrossEntropy, masked_loss
from hybrid.objectives.estimators import Clipped, Count, Estimator, Masking, Time
from hybrid.objectives.noise import NoiseKeys, block_view, target_ranks

log = logging.getLogger(__name__)
DRAWS = 2
REFERENCE = "time, linear, independent times"
COMPONENTS = 1 << 18
"""Most components of the gradient whose variance is summed, taken evenly from all; the same for all estimators."""

COUNTS_MEASURED = 16
"""Most counts at which gradient norms are measured; between them they are interpolated."""


@dataclass(frozen=True)
class Measured:
    """One estimator at one block size; losses in nats per token."""

    name: str
    block_size: int
    is_biased: bool
    mean: float
    stderr: float
    deviation: float  # of the mean from the reference, in standard errors
    loss_variance: float
    loss_variance_error: float
    gradient_variance: float
    gradient_variance_error: float
    signal: float  # squared norm of the mean gradient


def contenders(block_size: int, gradient_weights: list[float]) -> dict[str, tuple[Estimator, bool]]:
    """List the estimators by name, with whether their counts (or times) are stratified over the batch."""
    schedules: list[Any] = ["linear", {"name": "polynomial", "power": 2.0}, {"name": "polynomial", "power": 0.5}]
    schedules += ["cosine_mdlm", "cosine_md4", "logarithmic"]

    def named(schedule: Any) -> str:
        return schedule if isinstance(schedule, str) else f"t^{schedule['power']:g}"

    best = {"name": "explicit", "weights": gradient_weights}
    return {
        REFERENCE: (Time(), False),
        **{f"time, {named(s)}": (Time(s), True) for s in schedules},
        "time, clipped to [0.3, 0.8]": (Clipped("linear", 0.3, 0.8), True),
        "time, clipped to [0.5, 1]": (Clipped("linear", 0.5, 1.0), True),
        "count, independent counts": (Count(), False),
        "count": (Count(), True),
        "count, best for the gradient": (Count(best), True),
        "count, complementary": (Count("uniform", True), True),
    }


def measure_all(
    model: Transformer, batch: Batch, other: Batch, block_size: int, repeats: int, seed: int
) -> list[Measured]:
    """Measure every contender on the rows of `batch`; what is to be measured beforehand is measured on `other`."""
    norms = gradient_norms(model, other, block_size, seed)
    log.info("block size %d: gradient norms by count %s", block_size, ", ".join(f"{norm:.3g}" for norm in norms))
    samples: dict[str, tuple[Tensor, Tensor, float]] = {}
    entries = contenders(block_size, norms)
    for name, (estimator, stratified) in entries.items():
        samples[name] = repeat(model, batch, estimator, stratified, block_size, repeats, seed)
        log.info("block size %d: %s", block_size, name)
    unbiased = [losses for name, (losses, *_) in samples.items() if not hasattr(entries[name][0], "bias")]
    weights = [len(losses) / float(losses.var()) for losses in unbiased]
    pooled = sum(w * float(losses.mean()) for w, losses in zip(weights, unbiased, strict=True)) / sum(weights)
    return [
        _summary(name, block_size, hasattr(entries[name][0], "bias"), *sample, pooled)
        for name, sample in samples.items()
    ]


def _summary(
    name: str, block_size: int, is_biased: bool, losses: Tensor, squares: Tensor, signal: float, reference: float
) -> Measured:
    """Summarise repeats; `squares` are squared distances of the gradients from their mean."""
    n = len(losses)
    stderr = float(losses.std()) / math.sqrt(n)
    loss_squares = (losses - losses.mean()) ** 2
    return Measured(
        name, block_size, is_biased, float(losses.mean()), stderr, (float(losses.mean()) - reference) / stderr,
        float(losses.var()), float(loss_squares.std()) / math.sqrt(n),
        float(squares.sum()) / (n - 1), float(squares.std()) / math.sqrt(n), signal,
    )  # fmt: skip


def repeat(
    model: Transformer, batch: Batch, estimator: Estimator, stratified: bool, block_size: int, repeats: int, seed: int
) -> tuple[Tensor, Tensor, float]:
    """Measure one estimator `repeats` times, per token of the batch.

    Returns:
        Losses (R,), squared distances of the gradients from their mean (R,), and the squared norm of the expected
        gradient: an estimate without the bias of the noise in the mean.
    """
    objective = MaskedCrossEntropy(estimator, draws=DRAWS, stratified=stratified)
    parameters = [p for p in model.parameters() if p.requires_grad]
    stride = -(-sum(p.numel() for p in parameters) // COMPONENTS)
    losses, gradients = [], []
    for step in range(repeats):
        noise = _noise(batch, seed, step, len(batch.tokens))
        loss = objective.loss(model, batch, noise, block_size).total / batch.is_target.sum()
        grads = torch.autograd.grad(loss, parameters)
        losses.append(float(loss.detach()))
        gradients.append(torch.cat([g.flatten() for g in grads])[::stride].clone())
    mean = torch.stack(gradients).mean(0)
    squares = torch.stack([((g - mean).double() ** 2).sum() for g in gradients])
    signal = float((mean.double() ** 2).sum()) - float(squares.sum()) / (repeats - 1) / repeats
    return torch.tensor(losses, dtype=torch.float64), squares.cpu(), signal


def gradient_norms(model: Transformer, batch: Batch, block_size: int, seed: int, samples: int = 24) -> list[float]:
    """Measure the root mean square over blocks and masks of the norm of the gradient of m_n, for n = 1..B.

    The proposal of least gradient variance is proportional to it, as long as the blocks of a batch are independent.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    counts = list(range(1, block_size + 1))
    if block_size > COUNTS_MEASURED:  # the fewer are masked, the faster it changes
        counts = sorted({round(n) for n in np.geomspace(1, block_size, COUNTS_MEASURED)})
    n_blocks = -(-batch.tokens.shape[1] // block_size)
    norms = []
    for n in counts:
        total = 0.0
        for sample in range(samples):
            row, block = sample % len(batch.tokens), (sample * 7) % n_blocks
            one = batch.tokens[row : row + 1]
            rank = target_ranks(_noise(batch, seed + 2, sample, 1), batch.is_target[row : row + 1], block_size, 1)
            here = torch.arange(n_blocks, device=rank.device)[:, None] == block
            valid = block_view(batch.is_target[row : row + 1], block_size, False)[:, None]
            masking = Masking.of_blocks((rank < n) & here & valid, torch.tensor(1.0 / n), one.shape[1])
            if not bool(masking.masked.any()):
                continue
            loss = masked_loss(model, one, masking, block_size)
            total += sum(float((g.double() ** 2).sum()) for g in torch.autograd.grad(loss.total, parameters))
        norms.append(math.sqrt(total / samples))
    return [float(v) for v in np.interp(np.arange(1, block_size + 1), counts, norms)]


def _noise(batch: Batch, seed: int, step: int, rows: int) -> NoiseKeys:
    return NoiseKeys(seed, step, torch.arange(rows, device=batch.tokens.device), 0, rows)
