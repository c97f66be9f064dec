"""In which order should a puzzle be filled in? The share of right answers by decoder and block size, over several runs.

    python -m hybrid.experiments.solving --runs runs/sudoku4-s0 runs/sudoku4-s1 runs/sudoku4-s2
    python -m hybrid.experiments.solving --runs runs/sums-s0 runs/sums-s1 --decoders margin margin:per_step=2 --rows 200

`--runs` names runs that differ in their seed alone. It may be given several times, for a table each.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import sys
import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hybrid import cli
from hybrid.options import at_least, title
from hybrid.results.table import Table, column, plus_minus

if TYPE_CHECKING:
    from hybrid.config import Config
    from hybrid.evaluation.answers import Answers

log = logging.getLogger("hybrid.experiments.solving")
DECODERS = [
    *("margin", "confidence", "entropy", "left_to_right", "first_hitting"),
    *("margin:per_step=2", "margin:per_step=4", "confidence:threshold=0.9", "first_hitting:per_step=4"),
    *("mask_predict", "p2", "remdm"),
]


@dataclass(frozen=True)
class Group:
    """Runs of one setting: answers by (decoder, block size), one per run."""

    config: Config
    seeds: list[int]
    block_sizes: list[int]
    batch_rows: int
    answers: dict[tuple[str, int], list[Answers]]


def main() -> int:
    arguments = parse()
    from hybrid.evaluation.setting import choose_decoders
    from hybrid.results.publish import publish, refuse_foreign

    refuse_foreign(arguments.output)
    decoders = choose_decoders(arguments.decoders, "--decoders")
    groups = [solve(runs, decoders, arguments) for runs in arguments.runs]
    parts = [_explanation(arguments), *(part for group in groups for part in (describe(group), table(group)))]
    seeds = sorted({seed for group in groups for seed in group.seeds})
    publish(arguments.output, "hybrid.experiments.solving", "Right answers by decoding order", seeds, parts)
    return 0


def solve(runs: list[str], decoders: dict[str, Any], arguments: argparse.Namespace) -> Group:
    """Let every decoder answer on every run of a group.

    Raises:
        ValueError: runs that are not of one setting, or whose data has no answers.
    """
    from hybrid.evaluation.answers import score
    from hybrid.experiments.measuring.subject import load_runs, validation_of

    models = load_runs(runs, arguments.device)
    sizes = arguments.block_size or models[0].block_sizes
    answers: dict[tuple[str, int], list[Answers]] = {}
    for path, lm in zip(runs, models, strict=True):
        split = validation_of(lm)
        for size in sizes:
            for label, decoder in decoders.items():
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="block_size: .* was not trained")
                    engine = lm.engine(size, decoder, temperature=arguments.temperature, seed=arguments.seed)
                found = score(engine, split, arguments.rows, arguments.batch_rows)
                answers.setdefault((label, size), []).append(found)
                log.info("%s, block size %d, %s: %.3f", path, size, label, found.solved)
    seeds = [lm.config.run.seed for lm in models]
    return Group(models[0].config, seeds, sizes, arguments.batch_rows, answers)


@dataclass(frozen=True)
class Row:
    """One decoder: by block size the share of right answers of each run in percent; the rest at the largest size."""

    decoder: str = column("decoder")
    solved: dict[int, list[float]] = column("solved at {}, %", partial(plus_minus, digits=1))
    forwards: dict[int, float] = column("forwards at {}", ".1f")
    right_tokens: dict[int, float] = column("right tokens at {}, %", ".1f")


def table(group: Group) -> Table:
    """Tabulate the decoders, the best at the largest block size first."""
    largest = max(group.block_sizes)
    labels = list(dict.fromkeys(label for label, _ in group.answers))
    labels.sort(key=lambda label: -statistics.fmean(a.solved for a in group.answers[label, largest]))
    rows = []
    for label in labels:
        solved = {size: [100 * a.solved for a in group.answers[label, size]] for size in group.block_sizes}
        last = group.answers[label, largest]
        forwards = statistics.fmean(a.nfe / math.ceil(a.n / group.batch_rows) for a in last)
        right = 100 * statistics.fmean(a.right_tokens for a in last)
        rows.append(Row(label, solved, {largest: forwards}, {largest: right}))
    return Table(rows)


def describe(group: Group) -> str:
    c = group.config
    some = next(iter(group.answers.values()))
    return (
        f"**{title(c.data.corpus)}**: {c.model.n_layers} layers of {c.model.dim}, trained {c.trainer.steps:,} steps "
        f"at block size {c.objective.block_size}; {some[0].n} answers of each of {len(some)} runs."
    )


def _explanation(arguments: argparse.Namespace) -> str:
    return (
        f"Temperature {arguments.temperature:g}; the options of a decoder are behind its name, else they are the "
        "defaults. ± is the standard error over runs that differ in their seed. Forwards: of a batch of answers, at "
        "the largest block size. The validation split has no puzzle, solution or pair of numbers in common with the "
        "training split."
    )


def parse() -> argparse.Namespace:
    parser = cli.Parser(prog="python -m hybrid.experiments.solving", description=__doc__)
    parser.add_argument(
        "--runs", nargs="+", action="append", required=True, metavar="RUN",
        help="runs that differ in their seed alone; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--decoders", nargs="+", default=DECODERS, metavar="NAME[:key=value,...]",
        help=f"default: {len(DECODERS)} of them",
    )  # fmt: skip
    parser.add_argument(
        "--block-size", type=int, nargs="+", metavar="B", help="block sizes (default: those they were trained for)"
    )
    parser.add_argument("--rows", type=int, default=500, metavar="R", help="answers per run (default: 500; 0: all)")
    parser.add_argument("--batch-rows", type=int, default=250, metavar="R", help="answers at a time (default: 250)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default: 0, the best token")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of decoding (default: 0)")
    parser.add_argument("--output", metavar="FILE", help="write Markdown there")
    parser.add_argument("--device", default="auto", metavar="D", help="cpu, cuda, ... (default: auto)")
    arguments = parser.parse_args()
    at_least("--rows", arguments.rows, 0)
    at_least("--batch-rows", arguments.batch_rows, 1)
    return arguments


if __name__ == "__main__":
    sys.exit(cli.run(main))
