"""Compare runs: a page, Markdown, CSV and plots.

    python -m hybrid.report runs/sweeps/quick
    python -m hybrid.report runs/quickstart runs/ar runs/b16 --output comparison
    python -m hybrid.report runs/sweeps/block_size --output docs/block_size.md

Runs that differ in their seed alone are one model. Likelihoods and generated texts are those of `hybrid.evaluate`; of a
run that was not evaluated, the likelihoods are those of its last validation.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid import cli

if TYPE_CHECKING:
    from hybrid.report.groups import Group
    from hybrid.report.run_record import RunRecord
    from hybrid.report.sections import Section

log = logging.getLogger("hybrid.report")
MODULE = "hybrid.report"


def main() -> int:
    arguments = parse()
    from hybrid.report import groups, sections
    from hybrid.report.run_record import find_runs, refuse_different_data

    paths = [Path(path) for path in arguments.runs]
    together = Path(os.path.commonpath([path.absolute() for path in paths]))
    output = Path(arguments.output) if arguments.output else together / "report"
    refuse_foreign_report(output)
    runs, left_out = find_runs(paths)
    compared = groups.gather(runs)
    warnings = left_out + refuse_different_data(runs, arguments.force) + notes(runs) + seeds_of(compared)
    for warning in warnings:
        log.warning("%s", warning)
    title = arguments.title or together.name
    parts = sections.sections(compared)
    seeds = sorted({run.config.run.seed for run in runs})
    facts = sections.provenance(runs)
    if output.suffix == ".md":
        write_markdown(output, title, [*facts, *warnings], parts, seeds)
        print(output)
    else:
        write_all(output, title, facts, warnings, parts, compared, seeds)
        print(output / "index.html")
    return 0


def notes(runs: Sequence[RunRecord]) -> list[str]:
    """Say what makes numbers differ although the models may not."""
    notes = [note for run in runs for note in run.notes]
    for run in runs:
        steps = run.config.trainer.steps
        if run.step < steps:
            notes.append(f"{run.name} stopped at step {run.step:,} of {steps:,}.")
    old = [run.name for run in runs if run.evaluation is not None and run.evaluation.checkpoint is None]
    if old:
        notes.append(f"{', '.join(old)}: eval.json does not tell which checkpoint was evaluated; taken for the latest.")
    ways = sorted({run.how_evaluated for run in runs})
    if len(ways) > 1:
        notes.append(f"The runs were not evaluated alike ({'; '.join(ways)}): small differences may come from that.")
    return notes + _notes_on_texts([run for run in runs if run.generated])


def _notes_on_texts(runs: Sequence[RunRecord]) -> list[str]:
    """Say what makes the generated texts of some runs differ."""
    notes = []
    models = {}  # what tells an evaluation model from others -> its path
    for model in (run.evaluation_model for run in runs):
        known = model and model["checkpoint"]
        key = None if model is None else known["sha256"] if known else model["path"]
        models[key] = "none" if model is None else f"{model['path']}{_of_step(known)}"
    if len(models) > 1:
        names = ", ".join(sorted(models.values()))
        notes.append(f"Their texts had different judges ({names}), which can't be compared.")
    how = {run.name: run.evaluation.how_generated for run in runs if run.evaluation is not None}
    keys = [key for key in next(iter(how.values()), {}) if len({repr(h[key]) for h in how.values()}) > 1]
    if keys:
        notes.append(f"Their texts were not made alike ({', '.join(keys)} differ), which can't be compared.")
    return notes


def _of_step(checkpoint: dict | None) -> str:
    if not checkpoint:
        return ""
    step = "" if checkpoint["step"] is None else f"step {checkpoint['step']}, "
    return f" ({step}sha256 {checkpoint['sha256'][:12]}...)"


def seeds_of(compared: Sequence[Group]) -> list[str]:
    """Say which runs of one model are no seeds of it."""
    found = []
    for group in compared:
        seeds = [run.config.run.seed for run in group.runs]
        twice = [run.name for run in group.runs if seeds.count(run.config.run.seed) > 1]
        if twice:
            found.append(f"{', '.join(twice)} have the same seed: the error of {group.label} is not one over seeds.")
    return found


def refuse_foreign_report(output: Path) -> None:
    """Raise a ValueError if a report would replace something else."""
    from hybrid.report import page
    from hybrid.results.publish import refuse_foreign
    from hybrid.storage import overwriting

    if output.suffix == ".md":
        refuse_foreign(output)
        return

    def is_report(folder: Path) -> bool:
        return folder.is_dir() and (not any(folder.iterdir()) or overwriting.has_mark(folder / "index.html", page.MARK))

    overwriting.refuse_overwriting(output, is_report, "is no report", what="folder")


def write_markdown(output: Path, title: str, facts: list[str], parts: list[Section], seeds: list[int]) -> None:
    """Write one Markdown file with its plots beside it, and with the command that makes them."""
    from hybrid.report import page, plots
    from hybrid.results.publish import command_of, provenance, refuse_foreign_plots, write_result
    from hybrid.storage.atomic import write_bytes_atomic

    texts = [page.to_markdown(section, output.stem) for section in parts if not section.samples]
    refuse_foreign_plots(output, [f"{output.stem}-{name}.png" for section in parts for name in section.plots])
    write_result(output, title, provenance(command_of(MODULE), seeds), ["\n\n".join(facts), *texts])
    for section in parts:
        for name, (_, figure) in section.plots.items():
            write_bytes_atomic(output.with_name(f"{output.stem}-{name}.png"), plots.save_png(figure))


def write_all(
    output: Path, title: str, facts: list[str], warnings: list[str], parts: list[Section], compared: list[Group],
    seeds: list[int],
) -> None:  # fmt: skip
    """Write index.html, report.md, runs.csv and a PNG of each plot into a folder, which may hold an earlier report."""
    from hybrid.report import page
    from hybrid.storage.atomic import write_text_atomic

    refuse_foreign_report(output)
    output.mkdir(parents=True, exist_ok=True)
    write_text_atomic(output / "index.html", page.to_html(title, facts, warnings, parts))
    write_text_atomic(output / "runs.csv", to_csv(compared))
    write_markdown(output / "report.md", title, [*facts, *warnings], parts, seeds)


def to_csv(compared: list[Group]) -> str:
    """Write a line for each run and block size at which it was evaluated; settings that differ come last."""

    def lines(group: Group, run: RunRecord) -> list[list]:
        first = [run.name, group.label, run.config.run.seed, "|".join(map(str, run.block_sizes))]
        last = [run.step, run.tokens(run.step), run.seconds, run.environment["parameters"], *group.settings.values()]
        measured = [
            [m.block_size, m.likelihood, m.nats_per_token, m.known_stderr, m.bits_per_byte] for m in run.likelihoods
        ]
        return [[*first, *values, *last] for values in measured]

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["run", "model", "seed", "trained_block_size", "block_size", "likelihood", "nats_per_token", "stderr",
         "bits_per_byte", "steps", "tokens", "seconds", "parameters", *compared[0].settings]
    )  # fmt: skip
    for group in compared:
        for run in group.runs:
            writer.writerows(lines(group, run))
    return text.getvalue()


def parse() -> argparse.Namespace:
    parser = cli.Parser(prog="python -m hybrid.report", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs, or folders of runs")
    parser.add_argument(
        "--output", metavar="PATH",
        help="a folder for the page, Markdown, CSV and plots (default: `report` in the folder of the runs); or a file "
        "NAME.md for the Markdown and its plots alone",
    )  # fmt: skip
    parser.add_argument(
        "--title", metavar="TEXT", help="heading of the page (default: the name of the folder of the runs)"
    )
    parser.add_argument("--force", action="store_true", help="compare runs even where data or tokenizers differ")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(cli.run(main))
