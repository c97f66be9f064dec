"""What does a decoder give for its forwards? Quality of text against forwards per token, and its policy likelihood.

    python -m hybrid.experiments.decoders --checkpoint runs/bytes --judge runs/ar
    python -m hybrid.experiments.decoders --checkpoint runs/bytes --judge runs/ar --decoders confidence p2:eta=2

Each decoder writes the same number of texts with each seed. Real text of that number and length stands beside them.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

from hybrid import cli
from hybrid.experiments.measuring.subject import add_evaluated_texts
from hybrid.options import at_least
from hybrid.results.table import Table, column, standard_error

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger("hybrid.experiments.decoders")
FAMILIES = ("first_hitting", "confidence", "margin", "entropy", "left_to_right")
DECODERS = [
    *(f"{name}:per_step={k}" for name in FAMILIES for k in (1, 2, 4, 8)),
    *("ancestral:steps=8", "confidence:token=best", "confidence:threshold=0.9", "confidence:factor=0.5"),
    *("entropy_bounded:gamma=0.1", "entropy_bounded:gamma=0.5"),
    *("mask_predict:steps=4", "mask_predict:steps=8", "p2:steps=8", "p2:steps=8,eta=0"),
    *("remdm:steps=8", "remdm:steps=32"),
]


def _known(values: list[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def mean(values: list[float | None], form: str = ".3f") -> str | None:
    """Show the mean over seeds, and its standard error where they differ; None without a value."""
    known = _known(values)
    if not known:
        return None
    text = format(statistics.fmean(known), form)
    if len(set(known)) == 1 or form == ",.0f":  # a speed depends on what else the machine does
        return text
    return f"{text} ± {format(standard_error(known), form)}"


@dataclass(frozen=True)
class Row:
    """The texts of one decoder, as `Comparison` measures them; an item per seed."""

    decoder: str = column("decoder")
    nfe_per_token: list[float | None] = column("forwards per token", mean)
    tokens_per_second: list[float | None] = column("tokens/s", partial(mean, form=",.0f"))
    entropy: list[float | None] = column("entropy", mean)
    distinct_2: list[float | None] = column("distinct-2", mean)
    repetition: list[float | None] = column("repetition", mean)
    self_bleu: list[float | None] = column("self-BLEU", mean)
    gen_ppl: list[float | None] = column("gen-ppl", partial(mean, form=".2f"))
    mauve_like: list[float | None] = column("MAUVE-like", mean)
    policy_nats_per_token: list[float | None] = column("policy NLL", mean)

    @classmethod
    def of(cls, decoder: str, results: Sequence[Mapping[str, Any]]) -> Row:
        """Gather the results of the seeds, as eval.json has them."""
        return cls(decoder, *([result.get(field.name) for result in results] for field in fields(cls)[1:]))


def main() -> int:
    arguments = parse()
    from hybrid.evaluation.evaluation_model import load_evaluation_model
    from hybrid.experiments.measuring.subject import load_model, validation_of
    from hybrid.results.publish import publish, refuse_foreign

    refuse_foreign(arguments.output, plots=1)
    lm = load_model(arguments, arguments.device)
    evaluation_model = load_evaluation_model(arguments.judge, arguments.device)
    rows = compare(lm, evaluation_model, validation_of(lm), arguments)
    parts = [_explanation(lm, arguments), Table(rows)]
    plots = {"Judged quality and diversity against forwards per token": plot(rows)}
    module, title = "hybrid.experiments.decoders", "Decoders: quality against forwards"
    publish(arguments.output, module, title, arguments.seeds, parts, plots, str(lm.device))
    return 0


def compare(lm: Any, evaluation_model: Any, split: Any, arguments: argparse.Namespace) -> list[Row]:
    """Measure real text, then every decoder, once per seed; the policy likelihood, which has no seed, once."""
    from hybrid.device import precision_context
    from hybrid.evaluation.comparison import Comparison
    from hybrid.evaluation.scores import Scores
    from hybrid.evaluation.setting import choose_decoders, setting_for

    decoders = choose_decoders(arguments.decoders, "--decoders")
    size = arguments.block_size or lm.block_sizes[0]
    settings = [
        setting_for(lm.config.data.seq_len, arguments.new_tokens, 0, samples=arguments.samples, seed=seed)
        for seed in arguments.seeds
    ]
    scores = Scores(lm, split, precision_context("fp32", lm.device), rows=arguments.rows)
    results: dict[str, list[dict[str, Any]]] = {}
    for setting in settings:
        comparison = Comparison(lm, split, setting, evaluation_model, scores.policy)
        for result in comparison.lines([size], decoders):
            results.setdefault(result.decoder, []).append(result.as_json())
    return [Row.of(decoder, of_seed) for decoder, of_seed in results.items()]


def plot(rows: list[Row]) -> np.ndarray:
    """Plot gen-ppl and entropy against forwards per token, a curve per family of decoders."""
    from hybrid.evaluation.results import REAL
    from hybrid.results.plot import Panel, curves

    def forwards(row: Row) -> float:
        return statistics.fmean(_known(row.nfe_per_token))

    families: dict[str, list[Row]] = {}
    for row in rows:
        if row.decoder != REAL:
            families.setdefault(row.decoder.split(":per_step=")[0], []).append(row)  # joins the step sizes of a decoder
    real = next(row for row in rows if row.decoder == REAL)
    panels = []
    for key, title in (("gen_ppl", "generative perplexity"), ("entropy", "entropy of a text, nats")):
        drawn = {}
        for family, members in families.items():
            points = sorted(members, key=forwards)
            values = [_known(getattr(row, key)) for row in points]
            errors = [standard_error(v) if len(v) > 1 else 0.0 for v in values]
            drawn[family] = list(map(forwards, points)), list(map(statistics.fmean, values)), errors
        level = {"real text": statistics.fmean(_known(getattr(real, key)))}
        panels.append(Panel(title, "forwards per token", title, drawn, level, log_y=key == "gen_ppl"))
    return curves(panels)


def _explanation(lm: Any, arguments: argparse.Namespace) -> str:
    size = arguments.block_size or lm.block_sizes[0]
    return f"""\
`{arguments.checkpoint}` at block size {size}, temperature 1, {arguments.samples} texts of {arguments.new_tokens} tokens
per seed, no prompt. ± is the standard error over seeds of generation. There is one model. Gen-ppl and MAUVE-like are
those of the judge `{arguments.judge}`, entropy that of a text, in nats. Policy NLL is that of {arguments.rows or "all"}
validation rows, per token, in the decoder's order, where that is deterministic. Forwards are those of the batch, over
the tokens of a text. The MAUVE-like value of real text is that of two disjoint samples of it."""


def parse() -> argparse.Namespace:
    parser = cli.Parser(prog="python -m hybrid.experiments.decoders", description=__doc__)
    add_evaluated_texts(parser, samples=64, rows=64)
    parser.add_argument(
        "--decoders", nargs="+", default=DECODERS, metavar="NAME[:key=value,...]",
        help=f"default: {len(DECODERS)} of them",
    )  # fmt: skip
    parser.add_argument(
        "--block-size", type=int, metavar="B", help="block size of the texts (default: as it was trained)"
    )
    arguments = parser.parse_args()
    at_least("--samples", arguments.samples, 2)
    at_least("--rows", arguments.rows, 0)
    return arguments


if __name__ == "__main__":
    sys.exit(cli.run(main))
