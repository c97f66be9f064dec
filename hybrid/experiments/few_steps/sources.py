"""The sources by name."""

from __future__ import annotations

from hybrid.experiments.few_steps.documentation import Documentation
from hybrid.experiments.few_steps.enumerated import Chain1, Chain2
from hybrid.experiments.few_steps.sampled import Sudoku, Sums, Words
from hybrid.experiments.few_steps.source import Source

SOURCES: dict[str, type[Source]] = {
    "chain1": Chain1, "chain2": Chain2, "block_markov": Words, "sums": Sums, "sudoku4": Sudoku,
    "pydocs": Documentation,
}  # fmt: skip
