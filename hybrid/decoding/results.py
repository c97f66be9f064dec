"""Results of a generation: its state after each step, what a step changed, and the finished texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest

from torch import Tensor


@dataclass(frozen=True, eq=False)
class GenerationState:
    """The state after a step."""

    nfe: int
    done: bool
    text: Tensor  # (rows, width) prompts and what is behind them
    spans: list[tuple[int, int]]  # of each row, where its new tokens stand
    finish_reasons: Sequence[str | None] = ()  # as those of `Generation`; None: not finished
    kept: Sequence[int] = ()  # as that of `Generation`

    @cached_property
    def tokens(self) -> list[list[int]]:
        """The new tokens of each prompt so far, mask_token_id where still unknown."""
        return [row[first:end] for row, (first, end) in zip(self.text.tolist(), self.spans, strict=True)]

    @cached_property
    def sequences(self) -> list[list[int]]:
        """Each prompt, its gaps filled as far as they are, with its new tokens."""
        return [row[:end] for row, (_, end) in zip(self.text.tolist(), self.spans, strict=True)]


@dataclass(frozen=True)
class Change:
    """The tokens that a step revealed in one text, and those that it then took back, of these or of earlier ones."""

    nfe: int  # of the batch so far
    revealed: list[tuple[int, int, float]]  # position, token, and its `View.confidence`
    remasked: list[int]  # positions


@dataclass
class Generation:
    """Finished texts.

    `tokens[i]` are the new tokens behind prompt i only, an end-of-text that stopped it included; `sequences[i]` is the
    whole, the prompt with its gaps filled and the new tokens. `finish_reasons[i]` says why it ended: `end_of_text`, or
    `length` (it has all tokens that were asked for). `nfe` counts every forward of the batch by any network (the
    prompt's pass rides in the first). `kept[k]` counts the rounds of speculation that wrote k tokens of a text; other
    decoders have none. `law` is that of the `Engine`: of a network that has both, whether it was asked for the
    autoregressive law or that of blocks.
    """

    tokens: list[list[int]]
    nfe: int
    seconds: float
    finish_reasons: list[str] = field(default_factory=list)
    sequences: list[list[int]] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    law: str = ""


def added(histograms: Iterable[Sequence[int]]) -> list[int]:
    """Add up what several parts of a generation kept."""
    return [sum(counts) for counts in zip_longest(*histograms, fillvalue=0)]
