"""Texts that can be told apart, and what runs and evaluations have recorded of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import WORDS


def write_corpus(path: Path, letter: str = "z") -> Path:
    """24 documents; `letter` is one of their characters, so that another one gives every character another id."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        f"{letter} the {WORDS[n % len(WORDS)]} of number {n} {letter}{letter} is set by its name. " * 3
        for n in range(24)
    ]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def records(folder: Path) -> Any:
    return json.loads((folder / "eval.json").read_text())
