"""Ancestral decoding on a grid of T time steps against first_hitting: distribution, forwards, wall time.

python -m hybrid.experiments.discretisation
python -m hybrid.experiments.discretisation --checkpoint runs/masked --output docs/discretisation.md

Without a checkpoint: a toy whose distribution is enumerated. With one: also texts of the model, written one by one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hybrid import cli
from hybrid.experiments.measuring.subject import Subject, add_options, check_counts
from hybrid.results.table import Table, column, plus_minus, standard_error

if TYPE_CHECKING:
    import numpy as np

ABOUT = """\
`ancestral` draws all tokens that fall into one cell of the time grid at once, independently given the earlier cells;
`first_hitting` draws one token at a time and samples the model's any-order distribution exactly. A cell without a token
needs no forward. Grids are even in time; the schedule says which masked fraction a cell spans."""

TOY_PLOT = "The enumerated toy: distance to the any-order distribution, and forwards of a block, against steps"
TEXT_PLOT = "The model: time against steps; entropy of a text and its cost under the model against forwards"


def main() -> int:
    a = parse()
    from hybrid.results.publish import publish, refuse_foreign

    refuse_foreign(a.output, plots=2 if a.checkpoint else 1)
    subject = Subject.load(a, a.device) if a.checkpoint else None
    table, plot = toy(a)
    parts: list[str | Table] = [ABOUT, table]
    plots = {TOY_PLOT: plot}
    if subject is not None:
        results = text_results(subject, a)
        parts.append(text_table(subject, a, results))
        plots[TEXT_PLOT] = text_plot(a, results)
    device = "cpu" if subject is None else str(subject.lm.device)
    title = "Time discretisation against token by token"
    publish(a.output, "hybrid.experiments.discretisation", title, a.seeds, parts, plots, device)
    return 0


def settings(a: argparse.Namespace) -> list[tuple[str | None, int | None]]:
    """List (schedule, steps) of every decoder that is compared; (None, None) is first_hitting."""
    return [*((schedule, steps) for schedule in a.schedules for steps in a.steps), (None, None)]


def spec(schedule: str | None, steps: int | None) -> Any:
    if schedule is None:
        return "first_hitting"
    return {"name": "ancestral", "steps": steps, "schedule": schedule}


@dataclass(frozen=True)
class ToyRow:
    """One decoder on the enumerated model: its exact law, and blocks that it wrote."""

    grid: str = column("grid")  # the schedule, or first_hitting
    steps: int | None = column("steps")
    distance: float = column("total variation")
    kl: float = column("KL")
    expected: float = column("forwards, computed", ".4f")
    forwards: str = column("forwards, seen")
    p: float = column("p", ".3f")


def toy(a: argparse.Namespace) -> tuple[Table, np.ndarray]:
    """Compute the law of each decoder on the enumerated model, and compare the decoders themselves with it."""
    from hybrid.experiments.reverse_process.ancestral_law import (
        LENGTH,
        VOCAB,
        Toy,
        ancestral_law,
        cell_widths,
        chi_square,
        divergence,
        expected_forwards,
        total_variation,
    )
    from hybrid.results.plot import Panel, curves

    model = Toy.make(a.seeds[0])
    rows: list[ToyRow] = []
    distance: dict[str, list[tuple[float, float]]] = {}
    forwards: dict[str, list[tuple[float, float]]] = {}
    for number, (schedule, steps) in enumerate(settings(a)):
        law, expected = model.law, float(LENGTH)
        if schedule is not None and steps is not None:
            widths = cell_widths(steps, schedule)
            law, expected = ancestral_law(model.table, widths), expected_forwards(widths, LENGTH)
            distance.setdefault(schedule, []).append((steps, total_variation(law, model.law)))
            forwards.setdefault(schedule, []).append((steps, expected))
        counts, used = model.simulate(spec(schedule, steps), a.samples, seed=number)  # so that the p are independent
        error = float(used.double().std()) / len(used) ** 0.5
        seen = f"{float(used.double().mean()):.4f} ± {error:.4f}"
        distances = total_variation(law, model.law), divergence(law, model.law)
        rows.append(
            ToyRow(schedule or "first_hitting", steps, *distances, expected, seen, chi_square(counts, law))
        )  # fmt: skip
    caption = (
        f"**Enumerated toy**: a random model of {VOCAB} tokens and one block of {LENGTH}. Total variation and KL "
        "(nats, from ancestral to any-order) are exact, by dynamic programming over masks. Forwards of a block: "
        f"computed, and seen in {a.samples:,} blocks by the decoder (± standard error). p: chi-square of these blocks "
        "against the enumerated law (a very small one would say that the decoder is not what was computed)."
    )
    panels = [
        Panel("distance to the any-order law", "steps T", "total variation", _lines(distance), {}, log_y=True),
        Panel(f"forwards of a block of {LENGTH}", "steps T", "", _lines(forwards), {"first_hitting": LENGTH}),
    ]
    return Table(rows, caption), curves(panels)


def _lines(points: dict[str, list[tuple[float, float]]]) -> dict[str, list[tuple[float, ...]]]:
    return {name: list(zip(*pairs, strict=True)) for name, pairs in points.items()}


@dataclass(frozen=True)
class Measured:
    """Texts of one decoder; lists hold a value per seed."""

    grid: str = column("grid")
    steps: int | None = column("steps")
    expected: float = column("forwards per token, computed", ".3f")
    forwards: list[float] = column("forwards per token", plus_minus, default_factory=list)
    milliseconds: list[float] = column("ms per token", partial(plus_minus, digits=2), default_factory=list)
    entropy: list[float] = column("entropy of a text", plus_minus, default_factory=list)
    bound: list[float] = column("nats per token (bound)", plus_minus, default_factory=list)


Results = dict[tuple[str | None, int | None], Measured]


def text_results(subject: Subject, a: argparse.Namespace) -> Results:
    """Write `a.rows` texts per seed, one by one, so that forwards and time are those of a single text."""
    import torch

    from hybrid.evaluation.diversity import entropy

    lm, length, block_size = subject.lm, subject.length, subject.block_size
    lm.generate([[]], min(length, block_size), block_size, stop_at_end=False)  # the first forwards are slower
    results: Results = {}
    for setting in settings(a):
        grid, steps = setting
        measured = results[setting] = Measured(grid or "first_hitting", steps, per_token(subject, grid, steps))
        for seed in a.seeds:
            print(f"texts, seed {seed}: {spec(*setting)}", file=sys.stderr)
            texts = [
                lm.generate([[]], length, block_size, spec(*setting), seed=seed * a.rows + row, stop_at_end=False)
                for row in range(a.rows)
            ]
            tokens = [text.tokens[0] for text in texts]
            measured.forwards.append(sum(text.nfe for text in texts) / (a.rows * length))
            measured.milliseconds.append(1e3 * statistics.median(text.seconds for text in texts) / length)
            measured.entropy.append(entropy(tokens))
            measured.bound.append(subject.nats(torch.tensor(tokens)))
    return results


def per_token(subject: Subject, schedule: str | None, steps: int | None) -> float:
    """Compute the forwards per token of a decoder from its law. The last block is written in full, then cut."""
    from hybrid.experiments.reverse_process.ancestral_law import cell_widths, expected_forwards

    seq_len, starts = subject.lm.config.data.seq_len, range(0, subject.length, subject.block_size)
    sizes = [min(subject.block_size, seq_len - start) for start in starts]
    if schedule is None or steps is None:
        return sum(sizes) / subject.length
    widths = cell_widths(steps, schedule)
    return sum(expected_forwards(widths, size) for size in sizes) / subject.length


def text_table(subject: Subject, a: argparse.Namespace, results: Results) -> Table:
    caption = (
        f"{subject.describe(a.rows)} Texts are written one by one. Time: wall clock, median over texts. ± is the "
        f"standard error over the {len(a.seeds)} seeds."
    )
    return Table(list(results.values()), caption)


def text_plot(a: argparse.Namespace, results: Results) -> np.ndarray:
    import numpy as np

    from hybrid.results.plot import Panel, curves

    exact = results[None, None]

    def panel(title: str, x: str, value: str) -> Panel:
        lines = {}
        for schedule in a.schedules:
            points = []
            for steps in a.steps:
                measured = results[schedule, steps]
                values = getattr(measured, value)
                at = float(steps) if x == "steps T" else float(np.mean(measured.forwards))
                points.append((at, float(np.mean(values)), standard_error(values)))
            lines[schedule] = list(zip(*points, strict=True))
        return Panel(title, x, "", lines, {"first_hitting": float(np.mean(getattr(exact, value)))}, x == "steps T")

    return curves([
        panel("milliseconds per token", "steps T", "milliseconds"),
        panel("entropy of a text (nats)", "forwards per token", "entropy"),
        panel("nats per token under the model (bound)", "forwards per token", "bound"),
    ])  # fmt: skip


def parse() -> argparse.Namespace:
    parser = cli.Parser(prog="python -m hybrid.experiments.discretisation", description=__doc__)
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64, 256, 1024], metavar="T",
        help="cells of the time grid (default: 1 2 4 8 16 64 256 1024)",
    )  # fmt: skip
    parser.add_argument(
        "--schedules", nargs="+", default=["linear", "cosine_md4", "cosine_mdlm"], metavar="NAME",
        help="noise schedules of the grid (default: linear cosine_md4 cosine_mdlm)",
    )  # fmt: skip
    parser.add_argument("--samples", type=int, default=10_000, metavar="N", help="blocks of the toy (default: 10,000)")
    add_options(parser, rows=4)
    parser.add_argument("--device", default="auto", metavar="D", help="cpu, cuda, ... (default: auto)")
    a = parser.parse_args()
    check_counts(a, "steps", "samples")
    from hybrid.objectives.schedules import SCHEDULES
    from hybrid.options import pick

    a.schedules = [pick("--schedules", name, SCHEDULES) for name in dict.fromkeys(a.schedules)]
    a.steps = sorted(set(a.steps))
    return a


if __name__ == "__main__":
    sys.exit(cli.run(main))
