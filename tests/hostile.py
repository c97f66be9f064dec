"""Hostile inputs tried: a case is drawn, run in a fork, and judged by how it ended and by what it left.

The grammars are in hostile_settings.py (what is typed), hostile_corpora.py and
hostile_checkpoints.py (what is read).
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import kills
from forked import Child, Ended, command
from hostile_case import MINE, Case
from hostile_checkpoints import checkpoint
from hostile_corpora import corpus
from hostile_settings import command_line, configuration, overrides

KINDS: dict[str, Callable[[random.Random], Case]] = {
    "configuration": configuration,
    "overrides": overrides,
    "command": command_line,
    "corpus": corpus,
    "checkpoint": checkpoint,
}
SECONDS, PATIENCE = 10.0, 40.0  # of the processor; of the clock, on a machine that others use as well
MEGABYTES = 2000.0
LONGEST = 1500  # characters of an error line
_TRACE = re.compile(r'File "[^"]*?((?:hybrid/[^"]*|train|generate)\.py)", line (\d+), in (\S+)')


@dataclass(frozen=True)
class Stage:
    """A folder that every case gets a copy of: a trained and evaluated run, its corpus, and files of the user."""

    folder: Path

    @classmethod
    def built(cls, folder: Path) -> Stage:
        """Train and evaluate the run.

        Raises:
            RuntimeError: that failed.
        """
        kills.write_corpora(folder)
        for name in MINE:
            (folder / name).write_text(f"{name}: not to be touched\n")
        for program, words in (
            ("train.py", [*kills.TRAINED, "trainer.steps=4"]),
            ("-m hybrid.evaluate", ["--checkpoint", "runs/tiny", "--rows", "1", "--draws", "1"]),
        ):
            ended = Child(command(program, words, kills.environment_of(folder)), folder).wait()
            if ended.code != 0:
                raise RuntimeError(f"{program} failed: {ended.err}")
        shutil.rmtree(folder / "cache")
        return cls(folder)


def case_of(kind: str, seed: int, number: int) -> Case:
    """The case that a kind, a seed and a number stand for."""
    return KINDS[kind](random.Random(f"{kind} {seed} {number}"))


def attempt(case: Case, stage: Stage, folder: Path) -> tuple[list[str], Ended]:
    """Run a case in a new folder; what did not hold, and how it ended."""
    shutil.copytree(stage.folder, folder, symlinks=True)
    for change in case.changes:
        change(folder)
    before = contents(folder)
    ended = _run(case, folder)
    problems = [*limits(ended), *manners(case, ended), *traces(case, ended.code, before, contents(folder))]
    if ended.code == 0 and "--print-config" in case.words:
        problems += _comes_back(ended, folder)
    return problems, ended


def _run(case: Case, folder: Path) -> Ended:
    return Child(command(case.program, case.words, kills.environment_of(folder)), folder, case.stdin).wait(PATIENCE)


class Finished(Protocol):
    """How a command ended; of a fork, or of a test that called it in its own process."""

    @property
    def code(self) -> int: ...
    @property
    def out(self) -> str: ...
    @property
    def err(self) -> str: ...


def manners(case: Case, ended: Finished) -> list[str]:
    """Exit code 0 or 2; with 2 one `error:` line, at the end, and nothing on stdout."""
    if "Traceback (most recent call last)" in ended.err:
        frames = _TRACE.findall(ended.err)
        where = f"{frames[-1][0]}:{frames[-1][2]}" if frames else "outside of hybrid"
        return [f"traceback at {where}: {ended.err.splitlines()[-1][:160]}"]
    if ended.code not in (0, 2):
        return [f"exit code {ended.code}"]
    problems = []
    lines = ended.err.splitlines()
    errors = [line for line in lines if line.startswith("error:")]
    if ended.code == 0 and errors:
        problems.append("an error line with exit code 0")
    if ended.code == 2:
        if len(errors) != 1 or lines[-1] != errors[0]:
            problems.append(f"{len(errors)} error lines in {len(lines)} lines, not one at the end")
        if ended.out:
            problems.append(f"{len(ended.out)} characters on stdout beside an error")
    if any(len(line) > LONGEST for line in lines):
        problems.append(f"a line of {max(map(len, lines)):,} characters")
    odd = sorted({character for character in ended.err if ord(character) < 32 and character not in "\n\r\t"})
    if odd:
        problems.append(f"control characters on stderr: {odd!r}")
    if case.refused is not None and case.refused != (ended.code == 2):
        problems.append("was not refused" if case.refused else "was refused")
    return problems


def limits(ended: Ended) -> list[str]:
    """Time and memory."""
    problems = []
    if ended.is_late or ended.seconds > SECONDS:
        problems.append(f"took {ended.seconds:.0f} s of the processor{', and hung' if ended.is_late else ''}")
    if ended.megabytes > MEGABYTES:
        problems.append(f"took {ended.megabytes:,.0f} MB of memory")
    return problems


def contents(folder: Path) -> dict[str, str]:
    """What every path under a folder is; links are not followed."""
    found = {}
    for path in folder.rglob("*"):
        kind = "link " + os.readlink(path) if path.is_symlink() else "folder" if path.is_dir() else "pipe"
        if path.is_file() and not path.is_symlink():
            kind = hashlib.sha256(path.read_bytes()).hexdigest()
        found[os.fsdecode(os.fsencode(path.relative_to(folder)))] = kind
    return found


def traces(case: Case, code: int, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What a command may not leave: anything half-written, anything of the user's changed, any output of a failure."""
    changed = {name for name in before if after.get(name) != before[name]}
    new = set(after) - set(before)
    trains = case.program == "train.py" and not {"--dry-run", "--print-config"} & set(case.words)
    if trains:
        changed = {name for name in changed if not name.startswith("runs/tiny/")}
    if case.program == "-m hybrid.evaluate" and code == 0:
        changed -= {"runs/tiny/eval.json"}
    half = {n for n in new if re.search(r"(^|/)\.[^/]*$|\.tmp$|\.replaced$|\.building", n)}
    problems = [f"changed {name!r}" for name in sorted(changed)[:3]]
    problems += [f"left {name!r}" for name in sorted(half)[:3]]
    kept = {name for name in new - half if name.split("/")[0] != "cache" and not (trains and name.startswith("runs/"))}
    dry = (case.program == "train.py" and not trains) or "--dry-run" in case.words
    if kept and (code != 0 or dry):
        problems.append(f"wrote {sorted(kept)[0]!r} with exit code {code}")
    return problems


def _comes_back(printed: Ended, folder: Path) -> list[str]:
    """A printed configuration is one that prints the same."""
    (folder / "printed.yaml").write_text(printed.out, encoding="utf-8", errors="surrogateescape")
    again = _run(Case("train.py", ["--config", "printed.yaml", "--print-config"]), folder)
    return [] if (again.code, again.out) == (0, printed.out) else [f"does not come back: {again.err[-200:].strip()!r}"]
