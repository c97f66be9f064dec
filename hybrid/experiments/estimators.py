"""How noisy is each estimator of the ELBO? Mean, error and variance of its loss and of its gradient, per block size.

    python -m hybrid.experiments.estimators --checkpoint runs/bytes
    python -m hybrid.experiments.estimators --checkpoint runs/bytes --block-size 4 16 --output docs/estimators.md

The text is fixed, so all variance is that of the noise. Every estimator gets two noisy streams on one clean pass: all
cost the same. Each repeat is a batch of its own noise. The variance of the gradient is the sum of the variances of
its components (of every k-th, where there are many).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from hybrid import cli
from hybrid.options import at_least
from hybrid.results.table import Table, column

if TYPE_CHECKING:
    import numpy as np

    from hybrid.data.batches import Batch
    from hybrid.experiments.measuring.gradient_noise import Measured


def main() -> int:
    arguments = parse()
    from hybrid.experiments.measuring.gradient_noise import measure_all
    from hybrid.experiments.measuring.subject import load_model, validation_of
    from hybrid.results.publish import publish, refuse_foreign

    refuse_foreign(arguments.output, plots=1)
    lm = load_model(arguments, arguments.device)
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
    plots = {"Variance of the gradient, relative to the time form": plot(results, sizes)}
    module = "hybrid.experiments.estimators"
    publish(arguments.output, module, "Noise of the estimators", [arguments.seed], parts, plots, str(lm.device))
    return 0


def _with_error(value: tuple[float, float], form: str = ".3f") -> str:
    return " ± ".join(format(part, form) for part in value)


@dataclass(frozen=True)
class Row:
    """One estimator at one block size; pairs are a value and its standard error, ratios are to the reference."""

    estimator: str = column("estimator")
    mean: tuple[float, float] = column("nats per token", partial(_with_error, form=".4f"))
    deviation: float = column("from the mean of all (SE)", "+.1f")
    variance: float = column("variance", ".3g")
    ratio: tuple[float, float] = column("ratio", _with_error)
    gradient: tuple[float, float] = column("gradient, ratio", _with_error)
    noise: float | None = column("noise / signal", ".3g")


def table(results: list[Measured], block_size: int) -> Table:
    """Tabulate the estimators at one block size, the least gradient variance first."""
    from hybrid.experiments.measuring.gradient_noise import REFERENCE

    here = sorted((r for r in results if r.block_size == block_size), key=lambda r: r.gradient_variance)
    base = next(r for r in here if r.name == REFERENCE)
    rows = [
        Row(
            r.name + (" (biased)" if r.is_biased else ""), (r.mean, r.stderr), r.deviation, r.loss_variance,
            ratio=(r.loss_variance / base.loss_variance, r.loss_variance_error / base.loss_variance),
            gradient=(r.gradient_variance / base.gradient_variance, r.gradient_variance_error / base.gradient_variance),
            noise=r.gradient_variance / r.signal if r.signal > 0 else None,
        )
        for r in here
    ]  # fmt: skip
    return Table(rows, f'Block size {block_size}. Ratios are to "{REFERENCE}".')


def _explanation(arguments: argparse.Namespace, batch: Batch) -> str:
    from hybrid.experiments.measuring.gradient_noise import COMPONENTS, DRAWS

    return f"""\
{len(batch.tokens)} rows of {batch.tokens.shape[1]} tokens of the validation split, {arguments.repeats} repeats,
{DRAWS} noisy streams per clean pass for every estimator. The text is fixed: the variance is that of the noise. Counts
and times are stratified over the batch unless it says independent. The weights of "best for the gradient" were measured
on as many other rows.

* "from the mean of all": distance of the mean from the pooled mean of the unbiased estimators, in standard errors.
* "gradient": variance summed over at most {COMPONENTS:,} components of the gradient; "noise / signal": that, divided
  by the squared norm of the mean gradient. A biased estimator has another gradient: look at its noise / signal."""


def plot(results: list[Measured], sizes: list[int]) -> np.ndarray:
    """Plot the gradient variance relative to REFERENCE: a group of bars per estimator, a bar per block size."""
    from matplotlib.figure import Figure

    from hybrid.experiments.measuring.gradient_noise import REFERENCE
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
    cli.add_model(parser)
    parser.add_argument("--block-size", type=int, nargs="+", metavar="B", help="block sizes (default: 4 8 16)")
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
