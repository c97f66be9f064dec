"""Everything that only a GPU can show, stage by stage. docs/gpu.md says what each stage does.

    python -m hybrid.bench gpu --seconds 420 --output gpu.md --json gpu.jsonl
    python -m hybrid.bench gpu --seconds 60 --stages ceilings step          # these alone

A row is written as soon as it is measured, and a stage that dies costs no other one; the exit status is then 1.
Without a GPU the stages run with tiny sizes, which shows that they work and nothing else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid import cli
from hybrid.options import at_least, pick

if TYPE_CHECKING:
    from hybrid.bench.gpu.stage import Stage


def main(arguments: argparse.Namespace) -> int:
    from hybrid.bench.gpu.record import Record
    from hybrid.bench.gpu.runner import Runner
    from hybrid.bench.gpu.stage import Bench
    from hybrid.device import resolve_device

    stages = chosen(arguments.stages)
    output, lines = (None if path is None else Path(path) for path in (arguments.output, arguments.json))
    record = Record(stages, output, lines)
    named = output or lines
    bench = Bench.on(resolve_device("auto"), None if named is None else named.with_suffix(""))
    try:
        Runner(stages, bench, record, arguments.seconds).run()
    finally:
        print("\n\n".join(part if isinstance(part, str) else part.markdown() for part in record.parts()))
        for path in (output, lines):
            if path is not None and path.exists():
                print(f"wrote {path}", file=sys.stderr)
    if broken := record.broken():
        print(f"broken stages: {', '.join(broken)}; the first table says how each ended", file=sys.stderr)
    return int(bool(broken))


def chosen(names: Sequence[str] | None) -> Mapping[str, Stage]:
    """Return the stages of these names, in their own order; None: all.

    Raises:
        ValueError: no stage has such a name.
    """
    from hybrid.bench.gpu.stages import STAGES

    for name in names or ():
        pick("--stages", name, list(STAGES))
    return {name: stage for name, stage in STAGES.items() if names is None or name in names}


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser(prog="python -m hybrid.bench gpu", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=420.0, metavar="S",
        help="time for all stages; one that may take longer than what is left is skipped (default: 420)",
    )  # fmt: skip
    parser.add_argument("--stages", nargs="+", metavar="STAGE", help="run these alone (default: all)")
    parser.add_argument("--output", metavar="FILE", help="write the tables here as Markdown")
    parser.add_argument("--json", metavar="FILE", help="add each row here as a line of JSON")
    arguments = parser.parse_args(words)
    at_least("--seconds", arguments.seconds, 1)
    arguments.what = "gpu"
    return arguments
