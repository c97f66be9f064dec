"""The sources by name."""

from __future__ import annotations

from hybrid.experiments.few_steps.documentation import Documentation
from hybrid.experiments.few_steps.enumerated import Chain1, Chain2
from hybrid.experiments.few_steps.sampled import Words
from hybrid.experiments.few_steps.source import Source
from hybrid.experiments.few_steps.tasks import LooseSudoku, Sudoku, Sums

SOURCES: dict[str, type[Source]] = {
    "chain1": Chain1, "chain2": Chain2, "block_markov": Words, "sums": Sums, "sudoku4": Sudoku,
    "sudoku4_any": LooseSudoku, "pydocs": Documentation,
}  # fmt: skip
