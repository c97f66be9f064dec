"""How far is the bound from the likelihoods that it bounds? Every likelihood of a model, by block size and by order.

    python -m hybrid.experiments.likelihoods --runs runs/quickstart --block-size 2 4 8
    python -m hybrid.experiments.likelihoods --runs runs/a-s0 runs/a-s1 runs/a-s2 --rows 64 --output docs/likelihoods.md

The runs differ in their seed alone.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hybrid import cli
from hybrid.options import at_least, title
from hybrid.results.table import Table, column, plus_minus

if TYPE_CHECKING:
    from hybrid.lm import LanguageModel

log = logging.getLogger("hybrid.experiments.likelihoods")
ORDERS = ["left_to_right", "random", "margin", "entropy", "confidence:token=best", "margin:steps=2"]
FIRST = {
    "exact": "exact",
    "bound": "<= the bound",
    "importance": "<= importance-weighted bound",
    "enumerate": "random order, exact",
}
LAST = {
    "tightest": "best of these orders, in hindsight",
    "best_order": "best of all one-token orders, in hindsight",
}
Values = dict[tuple[str, int], list[float]]  # (likelihood, block size) -> nats per token, one per run


@dataclass(frozen=True)
class Row:
    """One likelihood: by block size a value per run, None where it does not exist."""

    likelihood: str = column("nats per token")
    nats_per_token: dict[int, list[float] | None] = column("block size {}", plus_minus)


def main() -> int:
    arguments = parse()
    from hybrid.experiments.measuring.subject import load_runs
    from hybrid.results.publish import publish, refuse_foreign

    refuse_foreign(arguments.output)
    models = load_runs(arguments.runs, arguments.device)
    values = measure(models, arguments)
    parts = [_explanation(models[0], arguments), table(values)]
    seeds, device = [lm.config.run.seed for lm in models], str(models[0].device)
    publish(arguments.output, "hybrid.experiments.likelihoods", "Likelihoods of one model", seeds, parts, device=device)
    return 0


def measure(models: list[LanguageModel], arguments: argparse.Namespace) -> Values:
    """Compute every likelihood that each block size allows, on the first rows of the validation split."""
    from hybrid.device import precision_context
    from hybrid.evaluation.scores import Scores
    from hybrid.evaluation.setting import choose_decoders
    from hybrid.experiments.measuring.subject import validation_of

    decoders = choose_decoders(arguments.orders, "--orders")
    values: Values = {}
    for lm in models:
        split = validation_of(lm)
        scores = Scores(lm, split, precision_context("fp32", lm.device), rows=arguments.rows, draws=arguments.draws)
        for line in scores.lines([1, *arguments.block_size], decoders=decoders, every=True):
            values.setdefault((line.decoder or line.likelihood, line.block_size), []).append(line.nats_per_token)
    return values


def table(values: Values) -> Table:
    """Tabulate them from the loosest to hindsight: means over runs with their standard errors."""
    sizes = sorted({size for _, size in values})
    measured = list(dict.fromkeys(name for name, _ in values))
    policies = {name: f"order: {name}" for name in measured if name not in (*FIRST, *LAST)}
    names = {name: shown for name, shown in {**FIRST, **policies, **LAST}.items() if name in measured}
    return Table([Row(shown, {size: values.get((name, size)) for size in sizes}) for name, shown in names.items()])


def _explanation(lm: LanguageModel, arguments: argparse.Namespace) -> str:
    c = lm.config
    return f"""\
{len(arguments.runs)} runs of {title(c.data.corpus)}, {c.model.n_layers} layers of {c.model.dim}, trained at block size
{c.objective.block_size} ({c.objective.weighting}, {c.model.context}, {c.model.prediction}). The other block sizes show
the same weights untrained. {arguments.rows or "All"} validation rows, {arguments.draws} noise draws or orders. ± is the
standard error over runs: it is that of the model, and the differences between lines, on the same rows of the same
model, are far more certain. What is chosen in hindsight is the likelihood of no procedure."""


def parse() -> argparse.Namespace:
    parser = cli.Parser(prog="python -m hybrid.experiments.likelihoods", description=__doc__)
    parser.add_argument("--runs", nargs="+", required=True, metavar="RUN", help="runs that differ in their seed alone")
    parser.add_argument(
        "--block-size", type=int, nargs="+", default=[2, 4, 8], metavar="B", help="block sizes (default: 2 4 8)"
    )
    parser.add_argument(
        "--orders", nargs="+", default=ORDERS, metavar="NAME[:key=value,...]",
        help="orders of decoders (default: " + " ".join(ORDERS) + ")",
    )  # fmt: skip
    parser.add_argument("--rows", type=int, default=64, metavar="R", help="validation rows (default: 64; 0: all)")
    parser.add_argument("--draws", type=int, default=8, metavar="D", help="draws of a bound (default: 8)")
    parser.add_argument("--output", metavar="FILE", help="write Markdown there")
    parser.add_argument("--device", default="auto", metavar="D", help="cpu, cuda, ... (default: auto)")
    arguments = parser.parse_args()
    at_least("--rows", arguments.rows, 0)
    at_least("--draws", arguments.draws, 2)
    if min(arguments.block_size) < 2:
        raise ValueError("--block-size: at block size 1 all likelihoods are one number, which is shown anyway; from 2")
    return arguments


if __name__ == "__main__":
    sys.exit(cli.run(main))
