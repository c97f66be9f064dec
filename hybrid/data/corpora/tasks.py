"""Tasks with right answers, as corpora: Sudoku, where the order of decoding matters, and sums, a left-to-right trap.

A document is a prompt and the answer, which alone is the target. All prompts of a corpus have the same length P and all
answers have the same length A, and A divides P: with `data.seq_len` = P + A + 1 (the end-of-text token) a row is one
example, and blocks of any size that divides A begin where the answer begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from hybrid.data.corpora.source import Document, Documents, InMemory, refuse_too_much
from hybrid.options import at_least, at_most, option
from hybrid.progress import progress
from hybrid.storage.hashing import digest

VERSION = 1  # raise it when the same options give other documents, so that old caches are left alone
BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # rows and columns of a box
BLANKS = {4: [8, 12], 6: [18, 24], 9: [36, 50]}  # by default; more leaves few puzzles, or takes long to find one
MOST_BLANKS = {4: 12, 6: 25, 9: 55}  # what removing cells in a random order often reaches
MOST_DIGITS = 1000  # of a number
CHUNK = 64  # examples between two signs of progress
ATTEMPTS = 30  # draws per example that is wanted, until there seem to be no more


@dataclass(frozen=True)
class Sudoku:
    """Sudoku puzzles with one solution: N * N digits row by row, 0 for a blank; the full grid is the answer.

    Puzzles of the same solved grid fall into one split.
    """

    size: int = option(4, "rows, columns and digits: 4 (boxes of 2 x 2), 6 (2 rows, 3 columns) or 9 (3 x 3)")
    puzzles: int = option(20_000, "how many, all different")
    blanks: int | list[int] | None = option(
        None,
        f"blank cells: a number, or [fewest, most]; null: {', '.join(f'{b} at size {n}' for n, b in BLANKS.items())}",
    )
    seed: int = option(0, "of the puzzles")

    def __post_init__(self) -> None:
        if self.size not in BOXES:
            raise ValueError(f"size: {self.size!r} is not a size of grid; {', '.join(map(str, BOXES))}")
        at_least("puzzles", self.puzzles, 2)
        refuse_too_much("puzzles", self.puzzles, 2 * self.size**2)
        at_least("seed", self.seed, 0)
        blanks, most = self.range_of_blanks, MOST_BLANKS[self.size]
        if len(blanks) != 2 or not 1 <= blanks[0] <= blanks[1] <= most:
            raise ValueError(
                f"blanks: {self.blanks!r} must be a number from 1 to {most} (size {self.size}), or two of them, "
                f"[fewest, most], e.g. {BLANKS[self.size]}"
            )

    @property
    def range_of_blanks(self) -> list[int]:
        """Return the fewest and the most blank cells; each puzzle draws a number between them."""
        blanks = BLANKS[self.size] if self.blanks is None else self.blanks
        return [blanks, blanks] if isinstance(blanks, int) else blanks

    def identity(self) -> str:
        return digest(str(VERSION), repr(self), str(self.range_of_blanks))

    def load(self, folder: Path) -> Documents:
        random = Random(self.seed)
        return _distinct(lambda: self._document(random), self.puzzles, "data.corpus.puzzles", "making puzzles")

    def _document(self, random: Random) -> Document | None:
        """Draw one puzzle; None if the cells that were tried could not be removed."""
        grid = next(solutions([0] * self.size**2, self.size, random))
        puzzle = remove_cells(grid, self.size, random.randint(*self.range_of_blanks), random)
        answer = "".join(map(str, grid))
        return None if puzzle is None else Document(answer, "".join(map(str, puzzle)), group=answer)


@dataclass(frozen=True)
class Sums:
    """Sums of two numbers, `0427+0958=` and the answer `01385`: the first digit may depend on a carry from the last.

    A sum and the same sum with its two numbers exchanged fall into one split.
    """

    digits: int = option(5, "of each number, zeros in front; the answer has one more")
    examples: int = option(50_000, "how many, all different")
    nines: float = option(0.5, "share of the columns that add up to nine and so hand a carry on; uniform digits: 0.1")
    seed: int = option(0, "of the examples")

    def __post_init__(self) -> None:
        at_least("digits", self.digits, 1)
        at_most("digits", self.digits, MOST_DIGITS)
        at_least("examples", self.examples, 2)
        refuse_too_much("examples", self.examples, 3 * self.digits + 3)
        at_least("seed", self.seed, 0)
        if not 0 <= self.nines <= 1:
            raise ValueError(f"nines: {self.nines!r} is not a share; it must be from 0 to 1")

    def identity(self) -> str:
        return digest(str(VERSION), repr(self))

    def load(self, folder: Path) -> Documents:
        random = Random(self.seed)
        return _distinct(lambda: self._document(random), self.examples, "data.corpus.examples", "making sums")

    def _document(self, random: Random) -> Document:
        columns = [self._column(random) for _ in range(self.digits)]
        a, b = ("".join(map(str, digits)) for digits in zip(*columns, strict=True))
        return Document(f"{int(a) + int(b):0{self.digits + 1}}", f"{a}+{b}=", group="+".join(sorted((a, b))))

    def _column(self, random: Random) -> tuple[int, int]:
        """Draw two digits. With nines = 0.1 every pair is equally likely."""
        if random.random() < self.nines:
            digit = random.randrange(10)
            return digit, 9 - digit
        while True:
            a, b = random.randrange(10), random.randrange(10)
            if a + b != 9:
                return a, b


def _distinct(draw: Callable[[], Document | None], n: int, key: str, what: str) -> Documents:
    """Draw `n` documents with different prompts. Raises ValueError if they seem to run out."""
    found: dict[str, Document] = {}
    chunks = (range(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))
    attempts = 0
    for chunk in progress(chunks, n, what, "examples"):
        while len(found) < chunk.stop:
            document, attempts = draw(), attempts + 1
            if document is not None and document.prompt is not None:
                found.setdefault(document.prompt, document)
            if attempts > ATTEMPTS * (n + 100):
                raise ValueError(
                    f"{key}: {n} different ones were not found in {attempts} draws, which gave {len(found)}; lower it, "
                    "or change the other options of data.corpus"
                )
    return InMemory(list(found.values()))


def solutions(cells: Sequence[int], size: int, random: Random | None = None) -> Iterator[tuple[int, ...]]:
    """Yield every full grid that agrees with `cells` (size * size digits row by row, 0 for a blank).

    Depth first, always at the blank with the fewest digits left; `random` shuffles the digits that are tried there.
    """
    units, grid, used = _units(size), list(cells), [0] * (3 * size)
    for (row, column, box), digit in zip(units, grid, strict=True):
        bit = 1 << digit
        if digit and (used[row] | used[column] | used[box]) & bit:
            return  # a digit twice in a row, column or box
        used[row], used[column], used[box] = used[row] | bit, used[column] | bit, used[box] | bit
    blanks = [cell for cell, digit in enumerate(grid) if not digit]
    every = (1 << size + 1) - 2  # bits 1 to size

    def search() -> Iterator[tuple[int, ...]]:
        best, free, fewest = -1, 0, size + 1
        for index, cell in enumerate(blanks):
            row, column, box = units[cell]
            candidates = every & ~(used[row] | used[column] | used[box])
            if candidates.bit_count() < fewest:
                best, free, fewest = index, candidates, candidates.bit_count()
                if fewest <= 1:
                    break
        if best < 0:
            yield tuple(grid)
        if fewest == 0 or best < 0:
            return
        blanks[best], blanks[-1] = blanks[-1], blanks[best]
        cell = blanks.pop()
        row, column, box = units[cell]
        digits = [digit for digit in range(1, size + 1) if free >> digit & 1]
        if random is not None:
            random.shuffle(digits)
        for digit in digits:
            bit = 1 << digit
            grid[cell] = digit
            used[row], used[column], used[box] = used[row] ^ bit, used[column] ^ bit, used[box] ^ bit
            yield from search()
            used[row], used[column], used[box] = used[row] ^ bit, used[column] ^ bit, used[box] ^ bit
        grid[cell] = 0
        blanks.append(cell)
        blanks[best], blanks[-1] = blanks[-1], blanks[best]

    yield from search()


def remove_cells(grid: Sequence[int], size: int, blanks: int, random: Random) -> list[int] | None:
    """Make a puzzle with `blanks` blanks whose one solution is `grid`; None if the random order led nowhere."""
    puzzle = list(grid)
    left = blanks
    for cell in random.sample(range(len(puzzle)), len(puzzle)):
        if left == 0:
            break
        if not _has_other(puzzle, size, cell):
            puzzle[cell], left = 0, left - 1
    return puzzle if left == 0 else None


def _has_other(puzzle: list[int], size: int, cell: int) -> bool:
    """Return whether some grid agrees with the puzzle except at `cell`. If none does, the cell may go."""
    peers = {puzzle[other] for other in _peers(size)[cell]}
    for digit in range(1, size + 1):
        if digit != puzzle[cell] and digit not in peers:
            changed = [*puzzle[:cell], digit, *puzzle[cell + 1 :]]
            if next(solutions(changed, size), None) is not None:
                return True
    return False


@cache
def _units(size: int) -> list[tuple[int, int, int]]:
    """Return the row, column and box of each cell, numbered 0 to 3 * size - 1."""
    height, width = BOXES[size]
    cells = [divmod(cell, size) for cell in range(size**2)]
    per_band = size // width  # boxes side by side
    return [(r, size + c, 2 * size + r // height * per_band + c // width) for r, c in cells]


@cache
def _peers(size: int) -> list[list[int]]:
    """Return the other cells of the row, column and box of each cell."""
    units = [set(of_cell) for of_cell in _units(size)]
    return [[b for b in range(size**2) if b != a and units[a] & units[b]] for a in range(size**2)]
