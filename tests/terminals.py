"""A terminal that a test can read, and what a generation sends to it."""

from __future__ import annotations

import io
import re
from pathlib import Path

import torch
from conftest import Command

from hybrid.decoding.results import GenerationState

MASK = 257


class Terminal(io.StringIO):
    """What a terminal of `width` columns shows at the end; knows newlines, cursor up, and clear to the end."""

    def isatty(self) -> bool:
        return True

    def screen(self, width: int) -> list[str]:
        lines, row = [""], 0
        for part in re.findall(r"\x1b\[\d*[AJ]|\n|[^\x1b\n]+", self.getvalue()):
            if part.endswith("A") and part.startswith("\x1b"):
                row -= int(part[2:-1])
                assert row >= 0
            elif part == "\x1b[J":
                del lines[row:]
                lines.append("")
            elif part == "\n":
                row += 1
                if row == len(lines):
                    lines.append("")
            else:
                pieces = [part[k : k + width] for k in range(0, len(part), width)]
                lines[row] += pieces[0]
                lines[row + 1 : row + 1] = pieces[1:]
                row += len(pieces) - 1
        return lines


def progress_of(rows: list[list[int]], nfe: int, done: bool, n_prompt: int = 0) -> GenerationState:
    width = max(map(len, rows))
    text = torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.long)
    return GenerationState(nfe, done, text, [(n_prompt, len(row)) for row in rows])


def text_of(command: Command, trained: Path, *words: object, **options) -> str:
    """What generate.py writes to stdout."""
    done = command("generate.py", "--checkpoint", trained, *words, **options)
    assert done.code == 0, done.err
    return done.out
