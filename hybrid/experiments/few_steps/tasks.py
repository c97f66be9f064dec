"""Tasks with right answers: of one there is only one, of the other several, which a network has to choose from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from hybrid.data.corpora.tasks import solutions
from hybrid.decoding.engine import generate_shared, n_batches
from hybrid.evaluation.answers import examples_of, score
from hybrid.experiments.few_steps.laws import Steps
from hybrid.experiments.few_steps.methods import Spec
from hybrid.experiments.few_steps.sampled import Sampled
from hybrid.experiments.few_steps.source import BEST, Caption, Figures, Written, best_of, listing
from hybrid.experiments.measuring.subject import validation_of
from hybrid.lm import LanguageModel
from hybrid.storage.atomic import write_text_atomic


@dataclass(frozen=True)
class Answered(Sampled):
    """A task whose right answer is a function of the question, and one block; the best token at the surest places."""

    captions: ClassVar[dict[str, Caption]] = {
        "solved": Caption("share of right answers"),
        "forwards": Caption("forwards of an answer", 2),
    }
    overrides = ("eval.sample_prompts=[]",)
    temperature = 0.0
    is_better_high = True
    answers: ClassVar[int] = 500
    tried: ClassVar[tuple[float, ...]] = (0.0, 0.3, 0.6, 1.0)

    def plain(self, steps: int) -> Spec:
        return {"name": "margin", "steps": steps}

    def judge(self, lm: LanguageModel, options: dict[str, Any]) -> Figures:
        engine = lm.engine(self.block_size, **options)
        found = score(engine, validation_of(lm), self.answers, batch_rows=self.answers)
        return {"solved": found.solved, "forwards": found.nfe / n_batches(found.n)}

    def temperatures(self, plain: Written, steps: Steps) -> dict[str, float]:
        return {BEST: best_of(self, plain, steps, self.tried)}

    def describe(self) -> str:
        return (
            f"{self.config}, blocks of {self.block_size}; {self.answers} answers of the validation split, decoder "
            f"margin, temperature 0. Temperatures tried with plain: {listing(self.tried)}; right or wrong, there is no "
            f"entropy to compare. {self.budget:,} forwards a network."
        )


@dataclass(frozen=True)
class Sums(Answered):
    """Sums of two numbers of 5 digits."""

    name, config, block_size, rows, default_forwards = "sums", "configs/sums.yaml", 6, 128, 200_000


@dataclass(frozen=True)
class Sudoku(Answered):
    """Sudoku of size 4."""

    name, config, block_size, rows, default_forwards = "sudoku4", "configs/sudoku/4.yaml", 16, 64, 100_000


@dataclass(frozen=True)
class LooseSudoku(Answered):
    """Sudoku of size 4 with so few clues that there are several solutions, all equally likely."""

    name, config, block_size, rows, default_forwards = "sudoku4_any", "configs/sudoku/4.yaml", 16, 64, 100_000
    captions: ClassVar[dict[str, Caption]] = {
        "solved": Caption("share of right answers"),
        "again": Caption("share of right answers that are the same at a second try"),
        "forwards": Caption("forwards of an answer", 2),
    }
    temperature = 1.0
    clues: ClassVar[int] = 3
    puzzles: ClassVar[int] = 20_000

    def corpus_settings(self) -> list[str]:
        file = Path(self.folder) / f"{self.name}.jsonl"
        if not file.exists():
            lines = (json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in self.documents())
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomic(file, "".join(f"{line}\n" for line in lines))
        return [f"data.corpus={file}"]

    def documents(self) -> list[tuple[str, str]]:
        """Draw puzzles, all different, and one solution of each."""
        random, grids, found = Random(0), self.right("0" * 16), {}
        while len(found) < self.puzzles:
            grid = random.choice(grids)
            known = random.sample(range(16), self.clues)
            found["".join(digit if cell in known else "0" for cell, digit in enumerate(grid))] = grid
        return list(found.items())

    def right(self, puzzle: str) -> list[str]:
        """List all solutions."""
        return ["".join(map(str, grid)) for grid in solutions([int(digit) for digit in puzzle], 4)]

    def judge(self, lm: LanguageModel, options: dict[str, Any]) -> Figures:
        engine = lm.engine(self.block_size, **options)
        prompts = [example.prompt for example in examples_of(validation_of(lm), self.answers // 2) for _ in "12"]
        result = generate_shared(engine, prompts, self.block_size)
        puzzles, answers = ([lm.tokenizer.decode(row) for row in rows] for rows in (prompts, result.tokens))
        return {**self.judged(puzzles, answers), "forwards": result.nfe / n_batches(len(prompts))}

    def judged(self, puzzles: list[str], answers: list[str]) -> Figures:
        """Judge answers, of which two that follow each other are to the same puzzle."""
        is_right = [answer in self.right(puzzle) for puzzle, answer in zip(puzzles, answers, strict=True)]
        right = [answer if found else None for answer, found in zip(answers, is_right, strict=True)]
        both = [a == b for a, b in zip(right[::2], right[1::2], strict=True) if a and b]
        again = {"again": sum(both) / len(both)} if both else {}
        return {"solved": sum(is_right) / len(answers), **again}

    def temperatures(self, plain: Written, steps: Steps) -> dict[str, float]:
        return {}

    def best_temperature(self, written: Written, steps: Steps) -> float | None:
        return best_of(self, written, steps, self.tried)

    def references(self, steps: Steps) -> dict[str, Figures]:
        return {"a solution at random": self.at_random}

    @cached_property
    def at_random(self) -> Figures:
        """Judge answers of which every solution is equally likely."""
        some = [puzzle for puzzle, _ in self.documents()[: self.answers]]
        return {"solved": 1.0, "again": sum(1 / len(self.right(puzzle)) for puzzle in some) / len(some)}

    def describe(self) -> str:
        return (
            f"{self.config}, but with {self.clues} clues at random, so that a puzzle has several solutions, each of "
            f"which is right and as likely as the others. {self.answers // 2} puzzles of the validation split, two "
            f"answers to each, decoder margin, temperature 1. Temperatures tried with every method, of which the best "
            f"has a row of its own: {listing(self.tried)}. "
            f"{self.budget:,} forwards a network."
        )
