"""The files of a benchmark, written anew after every row: what comes behind it cannot lose it."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from hybrid.config import Config
from hybrid.results import publish
from hybrid.results.environment import environment
from hybrid.results.table import Table
from hybrid.storage.atomic import write_json_atomic
from hybrid.storage.overwriting import has_keys, refuse_overwriting


class Record:
    """Tables by name, in the files that the options name: Markdown, and JSON with what was measured with what."""

    def __init__(
        self, arguments: argparse.Namespace, config: Config, device: torch.device, seeds: Sequence[int] = (0,)
    ):
        self.output, self.json = arguments.output, arguments.json
        self.arguments = arguments
        self.tables: dict[str, Table] = {}
        self.facts = {"options": vars(arguments), "config": dataclasses.asdict(config)}
        self.facts["environment"] = environment(device)
        self.origin = publish.provenance(publish.command_of("hybrid.bench"), list(seeds), str(device))

    def write(self, name: str, table: Table) -> None:
        """Write what there is by now, `table` being what is called `name`."""
        self.tables[name] = table
        refuse_foreign(self.arguments)
        if self.output is not None:
            publish.write_result(Path(self.output), "Speed", self.origin, list(self.tables.values()))
        if self.json is not None:
            Path(self.json).parent.mkdir(parents=True, exist_ok=True)
            results = {name: table.records() for name, table in self.tables.items()}
            write_json_atomic(self.json, {"results": results, **self.facts})

    def tell(self) -> None:
        """Say on stderr which files there are."""
        for path in (self.output, self.json):
            if path is not None:
                print(f"wrote {path}", file=sys.stderr)


def refuse_foreign(arguments: argparse.Namespace) -> None:
    """Raise a ValueError if the figures would replace something else."""
    output, json = arguments.output, arguments.json
    publish.refuse_foreign(output)
    if json is not None:
        if output is not None and Path(json).absolute() == Path(output).absolute():
            raise ValueError(f"--json: {json} is the file of --output; choose another file")
        keys = ("results", "options", "config", "environment")
        refuse_overwriting(Path(json), lambda p: has_keys(p, keys), "does not hold figures of hybrid.bench", "--json")
