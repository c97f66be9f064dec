"""Compare runs: a page, Markdown, CSV and plots.

    python -m hybrid.report runs/sweeps/quick
    python -m hybrid.report runs/quickstart runs/ar runs/b16 --output comparison
    python -m hybrid.report runs/sweeps/block_size --output docs/block_size.md

Runs that differ in their seed alone are one model. Likelihoods and generated texts are those of `hybrid.evaluate`; of a
run that it has not looked at, the likelihoods are those of its last validation.
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
    from hybrid.report.record import RunRecord
    from hybrid.report.sections import Section

log = logging.getLogger("hybrid.report")
MODULE = "hybrid.report"


def main() -> int:
    arguments = parse()
    from hybrid.report import groups, sections
    from hybrid.report.record import find_runs, refuse_different_data

    paths = [Path(path) for path in arguments.runs]
    runs, left_out = find_runs(paths)
    warnings = left_out + refuse_different_data(runs, arguments.force) + notes(runs)
    for warning in warnings:
        log.warning("%s", warning)
    together = Path(os.path.commonpath([path.absolute() for path in paths]))
    output = Path(arguments.output) if arguments.output else together / "report"
    title = arguments.title or together.name
    compared = groups.gather(runs)
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
    """What makes figures differ although the models may not."""
    notes = []
    for run in runs:
        steps = run.config.trainer.steps
        if run.step < steps:
            notes.append(f"{run.name} stopped at step {run.step:,} of {steps:,}.")
    ways = sorted({run.how_evaluated for run in runs})
    if len(ways) > 1:
        notes.append(f"The runs were not evaluated alike ({'; '.join(ways)}): small differences may come from that.")
    judges = {str(judge["path"]) if judge else "none" for judge in (run.judge for run in runs if run.generated)}
    if len(judges) > 1:
        notes.append(f"Their texts had different judges ({', '.join(sorted(judges))}), which can't be compared.")
    return notes


def write_markdown(output: Path, title: str, facts: list[str], parts: list[Section], seeds: list[int]) -> None:
    """One Markdown file with its plots beside it, and with the command that makes them."""
    from hybrid.atomic import write_bytes_atomic
    from hybrid.experiments.record import command_of, provenance, write_result
    from hybrid.report import figures, page

    texts = [page.to_markdown(section, output.stem) for section in parts if not section.samples]
    write_result(output, title, provenance(command_of(MODULE), seeds), ["\n\n".join(facts), *texts])
    for section in parts:
        for name, (_, figure) in section.figures.items():
            write_bytes_atomic(output.with_name(f"{output.stem}-{name}.png"), figures.save_png(figure))


def write_all(
    output: Path, title: str, facts: list[str], warnings: list[str], parts: list[Section], compared: list[Group],
    seeds: list[int],
) -> None:  # fmt: skip
    """index.html, report.md, runs.csv, and a PNG of each plot, in a folder that holds nothing or an earlier report."""
    from hybrid.atomic import has_mark, write_text_atomic
    from hybrid.report import page

    index = output / "index.html"
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and not has_mark(index, page.MARK):
        raise ValueError(f"--output: {output} exists and is no report; choose another folder")
    output.mkdir(parents=True, exist_ok=True)
    write_text_atomic(index, page.to_html(title, facts, warnings, parts))
    write_text_atomic(output / "runs.csv", to_csv(compared))
    write_markdown(output / "report.md", title, [*facts, *warnings], parts, seeds)


def to_csv(compared: list[Group]) -> str:
    """One line for each run and block size at which it was evaluated; settings that differ are the last columns."""

    def lines(group: Group, run: RunRecord) -> list[list]:
        first = [run.name, group.label, run.config.run.seed, "|".join(map(str, run.block_sizes))]
        last = [run.step, run.tokens(run.step), run.seconds, run.environment["parameters"], *group.settings.values()]
        measured = [[m.block_size, m.method, m.nats, m.stderr, m.bits_per_byte] for m in run.likelihoods]
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
    parser.add_argument("--title", metavar="TEXT", help="default: the name of the folder of the runs")
    parser.add_argument("--force", action="store_true", help="compare runs on other data or with other tokenizers")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(cli.run(main))
