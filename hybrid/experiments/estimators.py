"""How noisy is each estimator of the ELBO? Mean, error and variance of its loss and of its gradient, per block size.

    python -m hybrid.experiments.estimators --checkpoint runs/quickstart
    python -m hybrid.experiments.estimators --checkpoint runs/quickstart --block-size 4 16 --output docs/estimators.md

The text is fixed, so all variance is that of the noise. Every estimator gets two noisy streams on one clean pass: all
cost the same. Each repeat is a batch of its own noise. The variance of the gradient is the sum of the variances of
its components (of every k-th, where there are many).
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hybrid import cli
from hybrid.options import at_least

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from hybrid.data.dataset import Batch
    from hybrid.model import Transformer
    from hybrid.objectives.estimators import Estimator

log = logging.getLogger("hybrid.experiments.estimators")
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


def main() -> int:
    arguments = parse()
    from hybrid.experiments.measuring.subject import validation_of
    from hybrid.lm import load
    from hybrid.results.table import publish, refuse_foreign

    refuse_foreign(arguments.output, figures=1)
    lm = load(arguments.checkpoint, device=arguments.device)
    split = validation_of(lm)
    if 2 * arguments.rows > split.n_rows:
        raise ValueError(
            f"--rows: {arguments.rows} and as many to measure on exceed the {split.n_rows} validation rows"
        )
    batch, other = (
        split.rows(list(range(first, first + arguments.rows))).to(lm.device) for first in (0, arguments.rows)
    )
    sizes = arguments.block_size or [size for size in (4, 8, 16) if size <= lm.config.data.seq_len]
    results = []
    for size in sizes:
        lm.engine(block_size=size)  # refuses an impossible one
        results += measure_all(lm.model, batch, other, size, arguments.repeats, arguments.seed)
    parts = [_explanation(arguments, batch), *(table(results, size) for size in sizes)]
    figures = {"Variance of the gradient, relative to the time form": figure(results, sizes)}
    module = "hybrid.experiments.estimators"
    publish(arguments.output, module, "Noise of the estimators", [arguments.seed], parts, figures, str(lm.device))
    return 0


def contenders(block_size: int, gradient_weights: list[float]) -> dict[str, tuple[Estimator, bool]]:
    """Name -> estimator, and whether its counts (or times) are stratified over the batch."""
    from hybrid.objectives.estimators import Clipped, Count, Time

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
        "count, adaptive": (Count("adaptive"), True),
        "count, best for the gradient": (Count(best), True),
        "count, complementary": (Count("uniform", True), True),
        "count, complementary, adaptive": (Count("adaptive", True), True),
    }


def measure_all(
    model: Transformer, batch: Batch, other: Batch, block_size: int, repeats: int, seed: int
) -> list[Measured]:
    """Every contender on the rows of `batch`; what is to be learned beforehand is learned on `other`."""
    from hybrid.objectives.estimators import Count

    norms = gradient_norms(model, other, block_size, seed)
    log.info("block size %d: gradient norms by count %s", block_size, ", ".join(f"{norm:.3g}" for norm in norms))
    samples: dict[str, tuple[Tensor, Tensor, float]] = {}
    entries = contenders(block_size, norms)
    for name, (estimator, stratified) in entries.items():
        if isinstance(estimator, Count) and hasattr(estimator.source, "learn"):
            teach(model, other, estimator, block_size, seed)
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
    """`squares` are squared distances of the gradients from their mean."""
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
    """Losses (R,), squared distances of the gradients from their mean (R,), and the squared norm of the expected
    gradient (an estimate without the bias of the noise in the mean), all per token of the batch."""
    import torch

    from hybrid.objectives import Objective

    objective = Objective(estimator, draws=DRAWS, stratified=stratified)
    parameters = [p for p in model.parameters() if p.requires_grad]
    stride = -(-sum(p.numel() for p in parameters) // COMPONENTS)
    losses, gradients = [], []
    for step in range(repeats):
        loss = objective.loss(model, batch, _noise(batch, seed, step), block_size).total / batch.is_target.sum()
        grads = torch.autograd.grad(loss, parameters)
        losses.append(float(loss.detach()))
        gradients.append(torch.cat([g.flatten() for g in grads])[::stride].clone())
    mean = torch.stack(gradients).mean(0)
    squares = torch.stack([((g - mean).double() ** 2).sum() for g in gradients])
    signal = float((mean.double() ** 2).sum()) - float(squares.sum()) / (repeats - 1) / repeats
    return torch.tensor(losses, dtype=torch.float64), squares.cpu(), signal


def _noise(batch: Batch, seed: int, step: int) -> Any:
    import torch

    from hybrid.objectives.noise import NoiseKeys

    rows = len(batch.tokens)
    return NoiseKeys(seed, step, torch.arange(rows, device=batch.tokens.device), 0, rows)


def teach(model: Transformer, batch: Batch, estimator: Any, block_size: int, seed: int, steps: int = 50) -> None:
    """Show `steps` batches of noise to a proposal that learns."""
    import torch

    from hybrid.objectives import Objective

    objective = Objective(estimator, draws=DRAWS)
    with torch.no_grad():
        for step in range(steps):
            loss = objective.loss(model, batch, _noise(batch, seed + 1, step), block_size)
            objective.learn(block_size, [objective.observed(loss, batch.is_target, block_size)])


def gradient_norms(model: Transformer, batch: Batch, block_size: int, seed: int, samples: int = 24) -> list[float]:
    """Root mean square over blocks and masks of the norm of the gradient of m_n, for n = 1..B.

    The proposal of least gradient variance is proportional to it, as long as the blocks of a batch are independent.
    """
    import numpy as np
    import torch

    from hybrid.objectives.cross_entropy import masked_loss
    from hybrid.objectives.estimators import Masking
    from hybrid.objectives.noise import block_view, target_ranks

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
            rank = target_ranks(_one_row(batch, seed, sample), batch.is_target[row : row + 1], block_size, 1)
            here = torch.arange(n_blocks, device=rank.device)[:, None] == block
            valid = block_view(batch.is_target[row : row + 1], block_size, False)[:, None]
            masking = Masking.of_blocks((rank < n) & here & valid, torch.tensor(1.0 / n), one.shape[1])
            if not bool(masking.masked.any()):
                continue
            loss = masked_loss(model, one, masking, block_size)
            total += sum(float((g.double() ** 2).sum()) for g in torch.autograd.grad(loss.total, parameters))
        norms.append(math.sqrt(total / samples))
    return [float(v) for v in np.interp(np.arange(1, block_size + 1), counts, norms)]


def _one_row(batch: Batch, seed: int, sample: int) -> Any:
    import torch

    from hybrid.objectives.noise import NoiseKeys

    return NoiseKeys(seed + 2, sample, torch.zeros(1, dtype=torch.long, device=batch.tokens.device), 0, 1)


def table(results: list[Measured], block_size: int):
    """The estimators at one block size, the least gradient variance first; ratios are to REFERENCE."""
    from hybrid.results.table import Table

    here = [r for r in results if r.block_size == block_size]
    base = next(r for r in here if r.name == REFERENCE)
    rows = [
        (
            r.name + (" (biased)" if r.is_biased else ""),
            f"{r.mean:.4f} ± {r.stderr:.4f}",
            f"{r.deviation:+.1f}",
            f"{r.loss_variance:.3g}",
            f"{r.loss_variance / base.loss_variance:.3f} ± {r.loss_variance_error / base.loss_variance:.3f}",
            f"{r.gradient_variance / base.gradient_variance:.3f} ± "
            f"{r.gradient_variance_error / base.gradient_variance:.3f}",
            f"{r.gradient_variance / r.signal:.3g}" if r.signal > 0 else "-",
        )
        for r in sorted(here, key=lambda r: r.gradient_variance)
    ]
    columns = [
        "estimator",
        "nats per token",
        "from the mean of all (SE)",
        "variance",
        "ratio",
        "gradient, ratio",
        "noise / signal",
    ]
    return Table(columns, rows, f'Block size {block_size}. Ratios are to "{REFERENCE}".')


def _explanation(arguments: argparse.Namespace, batch: Batch) -> str:
    return f"""\
{len(batch.tokens)} rows of {batch.tokens.shape[1]} tokens of the validation split, {arguments.repeats} repeats,
{DRAWS} noisy streams per clean pass for every estimator. The text is fixed: the variance is that of the noise. Counts
and times are stratified over the batch unless it says independent. What `adaptive` and "best for the gradient" know was
learned on as many other rows.

* "from the mean of all": distance of the mean from the pooled mean of the unbiased estimators, in standard errors.
* "gradient": variance summed over at most {COMPONENTS:,} components of the gradient; "noise / signal": that, divided
  by the squared norm of the mean gradient. A biased estimator has another gradient: look at its noise / signal."""


def figure(results: list[Measured], sizes: list[int]) -> np.ndarray:
    """A group of bars per estimator: gradient variance relative to REFERENCE, a bar per block size."""
    from matplotlib.figure import Figure

    from hybrid.results.plot import rasterise

    names = list(dict.fromkeys(r.name for r in results))
    chart = Figure(figsize=(8, 0.38 * len(names) + 1), dpi=100, layout="constrained")
    axes = chart.add_subplot()
    height = 0.8 / len(sizes)
    for i, size in enumerate(sizes):
        of_size = {r.name: r for r in results if r.block_size == size}
        base = of_size[REFERENCE].gradient_variance
        values = [of_size[name].gradient_variance / base for name in names]
        errors = [of_size[name].gradient_variance_error / base for name in names]
        places = [-n + (len(sizes) - 1) / 2 * height - i * height for n in range(len(names))]
        axes.barh(places, values, height, xerr=errors, label=f"block size {size}", error_kw={"linewidth": 0.8})
    marks = [name + (" (biased)" if "clipped" in name else "") for name in names]
    axes.set_yticks([-n for n in range(len(names))], marks, fontsize=8)
    axes.set_xscale("log")
    axes.axvline(1, color="0.5", linewidth=0.8, linestyle=":")
    axes.set_xlabel("variance of the gradient, relative", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.legend(fontsize=8)
    return rasterise(chart)


def parse() -> argparse.Namespace:
    parser = cli.Parser(prog="python -m hybrid.experiments.estimators", description=__doc__)
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="a run, a checkpoint or a saved model")
    parser.add_argument("--block-size", type=int, nargs="+", metavar="B", help="default: 4 8 16")
    parser.add_argument("--rows", type=int, default=4, metavar="R", help="rows of the fixed batch (default: 4)")
    parser.add_argument("--repeats", type=int, default=100, metavar="N", help="batches of noise (default: 100)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the noise (default: 0)")
    parser.add_argument("--output", metavar="FILE", help="write Markdown there and a plot beside it")
    parser.add_argument("--device", default="auto", metavar="D", help="cpu, cuda, ... (default: auto)")
    arguments = parser.parse_args()
    for name, least in (("rows", 1), ("repeats", 2)):
        at_least(f"--{name}", getattr(arguments, name), least)
    if min(arguments.block_size or [2]) < 2:
        raise ValueError("--block-size: at block size 1 nothing is random; give sizes from 2")
    return arguments


if __name__ == "__main__":
    sys.exit(cli.run(main))
