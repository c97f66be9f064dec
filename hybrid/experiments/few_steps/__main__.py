"""How right are texts that are written in few forwards? Distillations, latents and correctors on one scale.

    python -m hybrid.experiments.few_steps --sources chain1 --methods plain --forwards 100000 --seeds 0
    python -m hybrid.experiments.few_steps --output docs/few_steps_chains.md

Every network has the same number of training forwards, those of its teacher included. Networks that are there already
are not trained again, so an experiment can be interrupted, and extended. The two chains, with all methods and three
seeds, take about two hours of one core (AMD EPYC).
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from hybrid import cli
from hybrid.options import at_least, pick

DEFAULT = ("chain1", "chain2")
PLOT = "What texts are judged by, against their forwards"


def main() -> int:
    a = parse()
    from hybrid.experiments.few_steps.comparison import EXPLANATION, compare, plot, tables
    from hybrid.experiments.few_steps.sources import SOURCES
    from hybrid.results.publish import publish, refuse_foreign

    refuse_foreign(a.output, plots=1)
    sources = {name: SOURCES[name](a.folder, a.forwards, a.judge) for name in a.sources}
    for source in sources.values():
        source.check(a.methods)
    found = {name: (source, compare(source, a.methods, a.steps, a.seeds)) for name, source in sources.items()}
    parts: list[Any] = [EXPLANATION]
    for name, (source, outcomes) in found.items():
        parts += tables(name, source, outcomes)
    title, plots = "Several tokens a forward: how right are the texts?", {PLOT: plot(found)}
    publish(a.output, "hybrid.experiments.few_steps", title, a.seeds, parts, plots)
    return 0


def steps_of(text: str) -> int | str:
    """Read a number of steps, or B."""
    if text != "B" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of steps; give one from 1, or B for one token a step")
    return text if text == "B" else int(text)


def parse() -> argparse.Namespace:
    parser = cli.Parser(prog="python -m hybrid.experiments.few_steps", description=__doc__)
    parser.add_argument(
        "--sources",
        nargs="+",
        metavar="NAME",
        help="chain1, chain2, block_markov, sums, sudoku4, sudoku4_any, pydocs (default: chain1 chain2)",
    )
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="default: all; plain is always among them")
    parser.add_argument(
        "--steps", nargs="+", type=steps_of, default=[1, 2, 4, 8, "B"], metavar="K",
        help="steps of a block; B: one token a step (default: 1 2 4 8 B)",
    )  # fmt: skip
    parser.add_argument(
        "--forwards", type=int, metavar="N",
        help="of a noisy text that the training of a network may cost, its teacher's included (default: the source's)",
    )  # fmt: skip
    parser.add_argument("--judge", metavar="RUN", help="a run that reads the texts of pydocs")
    parser.add_argument("--folder", default="runs/few_steps", help="where networks are kept (default: runs/few_steps)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="S", help="seeds (default: 0 1 2)")
    parser.add_argument("--output", metavar="FILE", help="write Markdown there and plots beside it")
    a = parser.parse_args()
    if a.forwards is not None:
        at_least("--forwards", a.forwards, 1)
    from hybrid.decoding.unmasking import check_count

    for steps in a.steps:
        if steps != "B":
            check_count("--steps", steps)
    for seed in a.seeds:
        at_least("--seeds", seed, 0)
    from hybrid.experiments.few_steps.methods import METHODS, PLAIN
    from hybrid.experiments.few_steps.sources import SOURCES

    a.sources = [pick("--sources", name, SOURCES) for name in dict.fromkeys(a.sources or DEFAULT)]
    a.methods = [pick("--methods", name, METHODS) for name in dict.fromkeys([PLAIN, *(a.methods or METHODS)])]
    for name in a.sources:
        if SOURCES[name].needs_judge and a.judge is None:
            raise ValueError(f"--judge: {name} needs a run that reads its texts; give one, or leave {name} out")
    if a.judge is not None and not any(SOURCES[name].needs_judge for name in a.sources):
        raise ValueError("--judge: none of the sources has texts for it to read; leave it out, or name pydocs")
    a.seeds, a.steps = list(dict.fromkeys(a.seeds)), list(dict.fromkeys(a.steps))
    return a


if __name__ == "__main__":
    sys.exit(cli.run(main))
