"""How many tokens may a forward reveal? Quality against tokens per forward, by block size, one text at a time.

    python -m hybrid.experiments.forwards --checkpoint runs/forwards --judge runs/ar

In a batch, rows wait for each other at the end of a block, so decoders that decide how many tokens to reveal are
measured where they are used: at batch 1. The model should be one that was trained at all the block sizes compared.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hybrid import cli
from hybrid.experiments.measuring.subject import add_evaluated_texts
from hybrid.options import at_least
from hybrid.results.table import Table, column, plus_minus

if TYPE_CHECKING:
    import numpy as np

    from hybrid.evaluation.base import EvaluationModel
    from hybrid.lm import LanguageModel

log = logging.getLogger("hybrid.experiments.forwards")
FAMILIES = {
    "at random": [f"first_hitting:per_step={k}" for k in (1, 2, 4, 8)],
    "most certain": [f"entropy:per_step={k}" for k in (1, 2, 4, 8)],
    "above a confidence": [f"confidence:token=best,threshold={t}" for t in (0.95, 0.8, 0.6, 0.4)],
    "entropy bound": [f"entropy_bounded:gamma={g}" for g in (0.1, 0.5, 1.5, 4.0)],
}
"""Of each, a curve from few to many tokens per forward."""


@dataclass(frozen=True)
class Point:
    """One decoder at one block size; an item per seed where the seed matters."""

    family: str
    block_size: int = column("block size")
    decoder: str = column("decoder")
    tokens_per_forward: list[float] = column("tokens per forward", partial(plus_minus, digits=2), default_factory=list)
    tokens_per_second: list[float] = column("tokens/s", lambda v: f"{statistics.fmean(v):,.0f}", default_factory=list)
    entropy: list[float] = column("entropy", plus_minus, default_factory=list)
    gen_ppl: list[float] = column("gen-ppl", partial(plus_minus, digits=2), default_factory=list)
    policy_nll: float | None = column("policy NLL", ".3f", default=None)  # nats per token of real text, in its order


def main() -> int:
    arguments = parse()
    from hybrid.evaluation.evaluation_model import load_evaluation_model
    from hybrid.experiments.measuring.subject import load_model
    from hybrid.results.publish import publish, refuse_foreign

    refuse_foreign(arguments.output, plots=2)
    lm = load_model(arguments, arguments.device)
    points = measure_all(lm, load_evaluation_model(arguments.judge, arguments.device), arguments)
    parts = [_explanation(arguments), Table(points)]
    plots = {
        "Generative perplexity against tokens per forward": plot(points, "gen_ppl"),
        "Policy likelihood against tokens per forward": plot(points, "policy_nll"),
    }
    title = "Tokens per forward"
    publish(
        arguments.output, "hybrid.experiments.forwards", title, arguments.seeds, parts, plots, device=str(lm.device)
    )
    return 0


def measure_all(lm: LanguageModel, evaluation_model: EvaluationModel, arguments: argparse.Namespace) -> list[Point]:
    from hybrid.device import precision_context
    from hybrid.evaluation.scores import Scores
    from hybrid.evaluation.setting import choose_decoders
    from hybrid.experiments.measuring.subject import validation_of

    scores = Scores(lm, validation_of(lm), precision_context("fp32", lm.device), rows=arguments.rows)
    points = []
    for size in arguments.block_size or sorted(lm.block_sizes):
        write(lm, size, "first_hitting", 1, arguments.new_tokens, seed=0)  # nobody's time has in it what is done once
        for family, labels in FAMILIES.items():
            for label, decoder in choose_decoders(labels, "decoder").items():
                log.info("block size %d, %s", size, label)
                point = Point(family, size, label, policy_nll=scores.policy(size, label, decoder))
                for seed in arguments.seeds:
                    add(point, lm, decoder, evaluation_model, arguments.samples, arguments.new_tokens, seed)
                points.append(point)
    return points


def add(
    point: Point,
    lm: LanguageModel,
    decoder: Any,
    evaluation_model: EvaluationModel,
    samples: int,
    length: int,
    seed: int,
) -> None:
    """Write the texts of one seed, one by one, and note what they cost and are."""
    from hybrid.evaluation.diversity import entropy

    started = time.perf_counter()
    rows, nfe = write(lm, point.block_size, decoder, samples, length, seed)
    seconds = time.perf_counter() - started
    tokens = sum(map(len, rows))
    point.tokens_per_forward.append(tokens / nfe)
    point.tokens_per_second.append(tokens / seconds)
    point.entropy.append(entropy(rows))
    point.gen_ppl.append(evaluation_model.read([lm.tokenizer.decode(row) for row in rows]).gen_ppl)


def write(
    lm: LanguageModel, size: int, decoder: Any, samples: int, length: int, seed: int
) -> tuple[list[list[int]], int]:
    """Write texts without a prompt, each in a batch of its own; return them and the forwards of all."""
    engine = lm.engine(size, decoder, seed=seed, stop_at_end=False)
    results = [engine.generate([[]], length, row_keys=[key]) for key in range(samples)]
    return [result.tokens[0] for result in results], sum(result.nfe for result in results)


def plot(points: list[Point], key: str) -> np.ndarray:
    """Plot a panel per block size, a curve per family."""
    from hybrid.results.plot import Panel, curves

    panels = []
    for size in dict.fromkeys(p.block_size for p in points):
        drawn = {}
        for family in FAMILIES:
            of_family = [p for p in points if (p.block_size, p.family) == (size, family)]
            known = [p for p in of_family if getattr(p, key) is not None]
            known.sort(key=lambda p: statistics.fmean(p.tokens_per_forward))
            if known:
                x = [statistics.fmean(p.tokens_per_forward) for p in known]
                values = [getattr(p, key) for p in known]
                drawn[family] = (x, [statistics.fmean(v) if isinstance(v, list) else v for v in values])
        name = "generative perplexity" if key == "gen_ppl" else "policy NLL, nats per token"
        panels.append(Panel(f"block size {size}", "tokens per forward", name, drawn, {}, log_y=key == "gen_ppl"))
    return curves(panels)


def _explanation(arguments: argparse.Namespace) -> str:
    return f"""\
`{arguments.checkpoint}`, {arguments.samples} texts of {arguments.new_tokens} tokens per seed, one at a time, no prompt,
temperature 1, float32. ± is the standard error over seeds of generation; there is one model. Gen-ppl is that of the
judge `{arguments.judge}`; it rewards dull text, so read it beside entropy, of the tokens of a text, in nats. Policy NLL
is the exact likelihood of {arguments.rows or "all"} rows of real text in the order in which the decoder would reveal
it, in nats per token: it rewards nothing but the right distribution, and decoders whose order is random have none."""


def parse() -> argparse.Namespace:
    parser = cli.Parser(prog="python -m hybrid.experiments.forwards", description=__doc__)
    add_evaluated_texts(parser, samples=16, rows=16)
    parser.add_argument(
        "--block-size", type=int, nargs="+", metavar="B",
        help="block sizes to compare (default: those it was trained for)",
    )  # fmt: skip
    arguments = parser.parse_args()
    at_least("--samples", arguments.samples, 1)
    at_least("--new-tokens", arguments.new_tokens, 1)
    at_least("--rows", arguments.rows, 0)
    for size in arguments.block_size or []:
        at_least("--block-size", size, 1)
    return arguments


if __name__ == "__main__":
    sys.exit(cli.run(main))
