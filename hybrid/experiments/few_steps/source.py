"""What a source of texts gives to the comparison: trained networks that write, and figures of what they write."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from hybrid.experiments.few_steps.laws import Steps
from hybrid.experiments.few_steps.methods import PLAIN
from hybrid.experiments.few_steps.stages import stages

Figures = dict[str, float]
"""Name -> value of what a method writes."""
Written = Callable[[Steps, float], Figures]
"""(steps of a block, temperature) -> figures of the texts that a network writes so."""

SHARPENED = "plain, at the source's entropy"
AT_BEST = "{}, at its best temperature"
BEST = AT_BEST.format(PLAIN)


class Caption(NamedTuple):
    """How a figure is headed, and shown with how many digits."""

    heading: str
    digits: int = 3


@dataclass(frozen=True)
class Source(ABC):
    """Where texts come from, with what is trained on them in `folder`.

    Attributes:
        captions: the figures, by name; the first is the one that a method is judged by, and `forwards` is the last.
        temperature: at which texts are written, where nothing else is said.
        judge_run: a run that reads the texts, of a source that `needs_judge`.
        is_better_high: whether a high value of the first figure is a good one.
        rows: of a batch of plain networks.
    """

    folder: str
    forwards: int | None = None
    judge_run: str | None = None
    captions: ClassVar[dict[str, Caption]]
    temperature: ClassVar[float] = 1.0
    is_better_high: ClassVar[bool] = False
    needs_judge: ClassVar[bool] = False
    rows: ClassVar[int]
    default_forwards: ClassVar[int]

    @property
    def budget(self) -> int:
        """Return how many forwards of a noisy text the training of a network may cost, its teacher's included."""
        return self.forwards or self.default_forwards

    @property
    def judged_by(self) -> str:
        return next(iter(self.captions))

    def check(self, methods: Sequence[str]) -> None:
        """Raise a ValueError, before anything is trained, for what could not be trained or judged."""
        for method in methods:
            for stage in stages(method, self.budget):
                stage.steps(self.rows)

    @abstractmethod
    def written_by(self, method: str, seed: int) -> Written:
        """Train the network of a method, unless it is there, and return what says what it writes."""

    @abstractmethod
    def temperatures(self, plain: Written, steps: Steps) -> dict[str, float]:
        """Label -> temperature of those at which plain texts are judged as well."""

    def best_temperature(self, written: Written, steps: Steps) -> float | None:
        """Find the temperature at which a method, plain or not, is judged best; None where it is not looked for."""
        return None

    def same_entropy(self, plain: Written, steps: Steps, wanted: float) -> float | None:
        """Find the temperature at which plain texts have an entropy; None where it is not looked for."""
        return None

    def references(self, steps: Steps) -> dict[str, Figures]:
        """Label -> figures of what is no network's."""
        return {}

    @abstractmethod
    def describe(self) -> str:
        """Say in a paragraph what it is."""


def best_of(source: Source, written: Written, steps: Steps, tried: Sequence[float]) -> float:
    """Find the temperature, of those that are tried, at which texts are judged best."""
    sign = -1 if source.is_better_high else 1
    return min(tried, key=lambda temperature: sign * written(steps, temperature)[source.judged_by])


def listing(temperatures: Sequence[float]) -> str:
    """Join temperatures for a sentence."""
    return ", ".join(f"{temperature:g}" for temperature in temperatures)


def bisected(entropy: Callable[[float], float], wanted: float, low: float, high: float, rounds: int = 24) -> float:
    """Bisect for the temperature between two at which an entropy, which rises with it, is as wanted.

    Where no temperature gives as much, or as little, it is the highest or the lowest.
    """
    bottom, top = math.log(low), math.log(high)
    for _ in range(rounds):
        middle = (bottom + top) / 2
        if entropy(math.exp(middle)) < wanted:
            bottom = middle
        else:
            top = middle
    return math.exp(top)


def interpolated(entropies: Sequence[tuple[float, float]], wanted: float) -> float:
    """Interpolate between (temperature, entropy), both rising: the temperature of an entropy, or the nearest."""
    (low, least), *_ = entropies
    if wanted <= least:
        return low
    for temperature, entropy in entropies[1:]:
        if wanted <= entropy:
            return low + (temperature - low) * (wanted - least) / (entropy - least)
        low, least = temperature, max(entropy, least)
    return low
