"""What was measured: lines of JSON, appended as they are made, and a page of Markdown, written anew with each."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.bench.gpu.stage import Stage, heading
from hybrid.results import publish
from hybrid.results.table import Table, column
from hybrid.storage.json_files import to_json
from hybrid.storage.overwriting import refuse_overwriting


@dataclass(frozen=True)
class StageRow:
    """How a stage ended."""

    stage: str = column("stage")
    budget: float = column("budget, s", "g")
    seconds: float = column("took, s", ".1f")
    outcome: str = column("outcome")


class Record:
    """The files of a run of stages. A run adds its lines to those of earlier runs; the page shows one run."""

    def __init__(self, stages: Mapping[str, Stage], output: Path | None, lines: Path | None):
        self.stages, self.output, self.lines = stages, output, lines
        self.facts: Mapping[str, str] = {}
        self.origin = publish.provenance(publish.command_of("hybrid.bench"), [0])  # until a child has told its device
        self.ends: list[StageRow] = []
        self.rows: dict[str, list[Any]] = {}
        refuse_foreign(output, lines)

    def head(self, facts: Mapping[str, str]) -> None:
        """Take down what the stages behind it run on; the same is not written twice."""
        if facts != self.facts:
            self.facts, self.origin = facts, facts["made by"]
            self._append({"head": facts})
            self._write_page()

    def row(self, stage: str, row: Any) -> None:
        """Take down a row of a stage."""
        self.rows.setdefault(stage, []).append(row)
        self._append({"stage": stage, "row": Table([row]).records()[0]})
        self._write_page()

    def end(self, stage: str, outcome: str, seconds: float) -> None:
        """Take down how a stage ended."""
        self.ends.append(StageRow(stage, self.stages[stage].seconds, seconds, outcome))
        self._append({"stage": stage, "outcome": outcome, "seconds": round(seconds, 1)})
        self._write_page()

    def broken(self) -> list[str]:
        """Return the stages that raised or died; one that was skipped or cut short has done what it could."""
        return [row.stage for row in self.ends if row.outcome.startswith(("failed", "died", "killed"))]

    def parts(self) -> list[str | Table]:
        """Return what the page shows."""
        facts = "\n".join(f"* {name}: {value}" for name, value in self.facts.items() if name != "made by")
        found: list[str | Table] = [facts] if facts else []
        if self.ends:
            found.append(Table(self.ends))
        for name, rows in self.rows.items():
            by_class: dict[type, list[Any]] = {}
            for row in rows:
                by_class.setdefault(type(row), []).append(row)
            found += [f"## {heading(self.stages[name])} (`{name}`)", *map(Table, by_class.values())]
        return found

    def _append(self, content: Mapping[str, Any]) -> None:
        if self.lines is not None:
            self.lines.parent.mkdir(parents=True, exist_ok=True)
            with open(self.lines, "a", encoding="utf-8") as file:
                file.write(to_json(content) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def _write_page(self) -> None:
        if self.output is not None:
            publish.write_result(self.output, "Measured on a GPU", self.origin, self.parts())


def refuse_foreign(output: Path | None, lines: Path | None) -> None:
    """Raise a ValueError if what is measured would replace something else, or be added to it."""
    publish.refuse_foreign(output)
    if lines is not None:
        if output is not None and lines.resolve() == output.resolve():
            raise ValueError(f"--json: {lines} is the file of --output; choose another file")
        refuse_overwriting(lines, _is_ours, "does not hold lines of hybrid.bench gpu", "--json")


def _is_ours(path: Path) -> bool:
    """Return whether the first line is one of a `Record`."""
    if not path.is_file():
        return False
    with open(path, encoding="utf-8", errors="replace") as file:
        first = file.readline()
    try:
        content = json.loads(first)
    except ValueError:
        return False
    return isinstance(content, dict) and bool({"head", "stage"} & content.keys())
