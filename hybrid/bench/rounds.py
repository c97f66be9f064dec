"""What rounds of speculation kept, and what they must keep to pay."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hybrid.decoding.results import GenerationState


@dataclass
class Written:
    """What was written by one decoder, and what it took."""

    texts: int = 0
    tokens: int = 0
    nfe: int = 0
    rounds: int = 0
    kept: Sequence[int] = ()
    checked: int = 0
    stood: int = 0

    def follow(self, states: Iterator[GenerationState], length: int | None) -> None:
        """Count along with a batch; with `length` also drafts, but for those of the last round of a text, which its end
        cuts short."""
        state, before = None, []
        for state in states:
            now = [end - first for first, end in state.spans]
            for n, m, reason in zip(now, before or [0] * len(now), state.finish_reasons, strict=True):
                if length is not None and n > m and reason is None:
                    self.stood += n - m - 2  # beside the token before the drafts, and that of the check behind them
                    self.checked += n - m - 2 + (n - m < length)
            self.rounds, before = self.rounds + 1, now
        assert state is not None
        self.texts, self.tokens, self.nfe = self.texts + len(before), self.tokens + sum(before), self.nfe + state.nfe
        self.kept = [n + m for n, m in itertools.zip_longest(self.kept, state.kept, fillvalue=0)]


def kept_a_round(acceptance: float, length: int) -> float:
    """2 + a + a^2 + ... of `length` - 2 drafts, each of which stands with probability a if those before it do."""
    return 2 + sum(acceptance**n for n in range(1, length - 1))


def acceptance_needed(pays_above: float, length: int) -> float | None:
    """Invert `kept_a_round`; None: no acceptance keeps so many tokens."""
    if pays_above > length:
        return None
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if kept_a_round(middle, length) < pays_above else (low, middle)
    return high
