"""What README, CONTRIBUTING and docs/ hold, on whatever page it stands: fenced blocks, commands, Python examples."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.checkpoints import IMPORTERS
from hybrid.data.corpora import CORPORA
from hybrid.decoding import DECODERS
from hybrid.evaluation import METRICS
from hybrid.likelihoods import LIKELIHOODS
from hybrid.model.attention import BACKENDS
from hybrid.objectives import ESTIMATORS, OBJECTIVES, PROPOSALS, SCHEDULES, WEIGHTINGS

REPO = Path(__file__).parents[1]
PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md"))]
TABLES: dict[str, dict[str, Any]] = {
    "attention": BACKENDS, "corpus": CORPORA, "decoder": DECODERS, "estimator": ESTIMATORS, "importer": IMPORTERS,
    "likelihood": LIKELIHOODS, "metric": METRICS, "objective": OBJECTIVES, "proposal": PROPOSALS,
    "schedule": SCHEDULES, "weighting": WEIGHTINGS,
}  # fmt: skip
"""By the name of an example: my_NAME.py puts an entry into TABLES["NAME"]."""

SHELLS = ("bash", "sh", "shell", "console")

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
"""A block, also one in an item of a list: how far it is indented, its language, what it holds."""

STARTS = r"(?:[A-Z_]+=\S+ +)*(?:[\w.-]+/)*(?:python3?|torchrun|tensorboard|pip)"
"""How a command starts."""

_INLINE = re.compile(rf"`((?:{STARTS}|(?:train|generate)\.py|hybrid(?:\.\w+)+)\s+[^`]+)`")
CELL = re.compile(r"(?<!\\)\|")
_LOOP = re.compile(r"for (\w+) in ([^;]+); do (.*); done")
_SEED = re.compile(r"(?<==)S\b|(?<=-s)S\b")
"""In a command for several seeds, S stands for each of them."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, its first line there, its language, and what it holds."""

    page: str
    line: int
    language: str
    text: str

    @property
    def module(self) -> str | None:
        """Name of the module that an example is, if it is one: it begins with `# my_NAME.py`."""
        found = re.match(r"# (my_\w+)\.py\n", self.text)
        return found[1] if found and self.language == "python" else None


@dataclass(frozen=True)
class ShellCommand:
    """A command, and where it stands."""

    page: str
    line: int
    words: tuple[str, ...]
    is_inline: bool = False  # in a sentence, which may leave out what a program needs: `generate.py --planner RUN`

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"

    def value_of(self, option: str) -> list[str]:
        """The words behind each `option`, up to the next option or setting."""
        found = []
        for place in (i for i, word in enumerate(self.words) if word == option):
            for word in self.words[place + 1 :]:
                if word.startswith("--") or "=" in word:
                    break
                found.append(word)
        return found


def name_of(page: Path) -> str:
    return page.relative_to(REPO).as_posix()


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            name_of(page), text.count("\n", 0, m.start(3)) + 1, m[2], re.sub(rf"^{m[1]}", "", m[3], flags=re.MULTILINE)
        )
        for m in FENCE.finditer(text)
    ]


def without_blocks(text: str) -> str:
    """The text with empty lines in place of its fenced blocks."""
    return FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)


def tables_of(page: Path) -> Iterator[tuple[list[str], list[list[str]]]]:
    """The head and the rows of each table, as the texts of their cells."""
    prose = without_blocks(page.read_text(encoding="utf-8"))
    for table in re.findall(r"^\|.*\n\|[-: |]+\|\n(?:\|.*\n)*", prose, re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in CELL.split(line)[1:-1]] for line in table.splitlines())
        yield head, rows


def commands_of(page: Path) -> Iterator[ShellCommand]:
    """Every command of a shell's block, and every one in backquotes that names a program and something behind it."""
    text = page.read_text(encoding="utf-8")
    for block in blocks_of(page):
        if block.language in SHELLS:
            for line, written in _whole_lines(block):
                yield from (ShellCommand(block.page, line, words) for words in split(written))
    prose = without_blocks(text)
    for found in _INLINE.finditer(prose):
        line = prose.count("\n", 0, found.start()) + 1
        yield from (ShellCommand(name_of(page), line, words, True) for words in split(_SEED.sub("0", found[1])))


def _whole_lines(block: Block) -> Iterator[tuple[int, str]]:
    """Yield each line with those that continue it, and its number on the page."""
    whole, start = "", block.line
    for line, part in enumerate(block.text.splitlines(), block.line):
        whole += part.removesuffix("\\")
        if not part.endswith("\\"):
            yield start, whole
            whole, start = "", line + 1


def split(line: str) -> list[tuple[str, ...]]:
    """The commands of a line, each as its words: without variables before it, and without a redirection behind it.

    A loop over words (`for b in 1 2; do ...; done`) is written out.
    """
    if loop := _LOOP.fullmatch(line.strip()):
        bodies = (loop[3].replace(f"${loop[1]}", value) for value in shlex.split(loop[2]))
        return [words for body in bodies for words in split(body)]
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("&|;"):
            commands.append([])
        else:
            commands[-1].append(word)
    return [tuple(words) for command in commands if (words := _bare(command))]


def _bare(words: list[str]) -> list[str]:
    end = next((i for i, word in enumerate(words) if set(word) <= set("<>")), len(words))
    start = next((i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), end)
    return words[start:end]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
COMMANDS = [command for page in PAGES for command in commands_of(page)]
EXAMPLES = {block.module: block.text for block in reversed(BLOCKS) if block.module}
"""The modules of a user's own, by name. The same name on two pages has the same text; a test says so."""

FRAGMENTS = list(dict.fromkeys(b.text for b in BLOCKS if b.language == "python" and b.text.startswith(" ")))
"""Methods that a page shows without their class: they are indented."""


@contextlib.contextmanager
def importable_examples(folder: Path) -> Iterator[None]:
    """Let the modules of the pages be imported; what they register is gone afterwards."""
    before = {name: dict(table) for name, table in TABLES.items()}
    for name, code in EXAMPLES.items():
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name, table in TABLES.items():
            table.clear()
            table.update(before[name])
        for name in EXAMPLES:
            sys.modules.pop(name, None)
