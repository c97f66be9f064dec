"""Runs killed at random moments, and hostile inputs: what must hold of them, tried many times.

    python tests/campaign.py                                  # 40 kills and 300 inputs, some five minutes on two cores
    python tests/campaign.py --kills 0 --inputs 1000 --seed 7
    python tests/campaign.py --only corpus --inputs 100       # inputs of one kind
    python tests/campaign.py --only kill:17                   # one case again, by the name that a failure is told with
    python tests/campaign.py --only checkpoint:4 --keep       # ... and leave its folder, to look at

A killed run must end as one that was never interrupted. A command must end with exit code 0 or 2 and one line, soon and
in little memory, whatever it is given. Exit codes: 0 all held, 1 something did not.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone, installed or not

import forked
import hostile
import kills

SHOWN = 5  # problems of a case that are printed


class Result(NamedTuple):
    """One case: its kind and name, how many things were tried in it, and what did not hold."""

    kind: str
    name: str
    tried: int
    problems: list[str]
    story: str


def main() -> int:
    arguments = parse()
    print("importing", flush=True)
    forked.warm_up()
    root = Path(tempfile.mkdtemp(prefix="hybrid-campaign-"))
    started = time.monotonic()
    results = []
    try:
        for result in cases(arguments, root):
            results.append(result)
            mark = "failed" if result.problems else "held"
            say(f"{time.monotonic() - started:5.0f} s  {result.name:18} {mark:6} {result.story}")
            for problem in result.problems[:SHOWN]:
                say(f"           {problem}")
            if len(result.problems) > SHOWN:
                say(f"           and {len(result.problems) - SHOWN} more")
            if time.monotonic() - started > 60 * arguments.minutes:
                print(f"--minutes: stopped after {arguments.minutes:g} minutes, not all was tried", flush=True)
                break
    finally:
        if arguments.keep:
            print(f"kept {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)
    return summary(results, arguments.seed)


def cases(arguments: argparse.Namespace, root: Path) -> Iterator[Result]:
    """The kills, then the inputs, of all kinds in turn; of one kind, or one case, if that was asked for."""
    kind, _, number = arguments.only.partition(":")
    if kind in ("", "kill"):
        yield from killed(arguments, root / "kills", int(number) if number else None)
    kinds = [kind] if kind else list(hostile.KINDS)
    if kind == "kill" or not arguments.inputs:
        return
    stage = hostile.Stage.built(root / "stage")
    for index in range(arguments.inputs) if not number else [int(number)]:
        yield tried(kinds[index % len(kinds)], index // len(kinds), arguments, stage, root)


def killed(arguments: argparse.Namespace, root: Path, only: int | None) -> Iterator[Result]:
    references: dict[str, kills.Reference] = {}
    done, number = 0, 0 if only is None else only
    while done < arguments.kills if only is None else not done:
        variant = list(kills.VARIANTS)[number % len(kills.VARIANTS)]
        if variant not in references:
            references[variant] = kills.reference_of(variant, root / variant)
        place = root / f"{number}"
        case = kills.survive(references[variant], place, arguments.seed, number)
        done += max(case.kills, only is not None)
        yield Result("kill", f"kill:{number}", case.kills, case.problems, f"{variant}: {', '.join(case.moments)}")
        if not arguments.keep:
            shutil.rmtree(place)
        number += 1


def tried(kind: str, number: int, arguments: argparse.Namespace, stage: hostile.Stage, root: Path) -> Result:
    case = hostile.case_of(kind, arguments.seed, number)
    folder = root / f"{kind}-{number}"
    problems, ended = hostile.attempt(case, stage, folder)
    if not arguments.keep:
        shutil.rmtree(folder)
    last = (ended.err.splitlines() or [""])[-1]
    return Result(kind, f"{kind}:{number}", 1, problems, f"exit {ended.code} <- {case.told()} -> {last[:200]}")


def summary(results: list[Result], seed: int) -> int:
    """A line for each kind, then each cause with how to see a case of it again."""
    tried, failed = Counter[str](), Counter[str]()
    causes: dict[str, list[str]] = {}
    for result in results:
        tried[result.kind] += result.tried
        failed[result.kind] += bool(result.problems)
        for cause in dict.fromkeys(re.sub(r"[\d.,]+", "N", problem)[:120] for problem in result.problems[:2]):
            causes.setdefault(f"{result.kind}: {cause}", []).append(result.name)
    print("\nkind            tried  failed")
    for kind in tried:
        print(f"{kind:14} {tried[kind]:6} {failed[kind]:7}")
    for cause, names in sorted(causes.items(), key=lambda item: -len(item[1])):
        say(f"{len(names)} x {cause}\n    python tests/campaign.py --seed {seed} --only {names[0]}")
    return 1 if any(failed.values()) else 0


def say(text: str) -> None:
    """Print what may hold anything, on any terminal."""
    print("\n".join(line.encode("unicode_escape").decode("ascii") for line in text.split("\n")), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40, metavar="N", help="how many signals are sent (default: 40)")
    parser.add_argument("--inputs", type=int, default=300, metavar="N", help="how many inputs (default: 300)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of all that is drawn (default: 0)")
    parser.add_argument("--minutes", type=float, default=10, metavar="M", help="stop after so many (default: 10)")
    parser.add_argument("--only", default="", metavar="KIND[:N]", help="one kind, or one case")
    parser.add_argument("--keep", action="store_true", help="keep the folders of the cases")
    arguments = parser.parse_args()
    if arguments.only.partition(":")[0] not in ("", "kill", *hostile.KINDS):
        parser.error(f"--only: {arguments.only} is not one of kill, {', '.join(hostile.KINDS)}, perhaps with :N")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
