"""Methods side by side on an enumerated source: the laws of their texts, and of plain texts as diverse as theirs."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from torch import Tensor

from hybrid.experiments.few_steps import laws
from hybrid.experiments.few_steps.enumerated import LENGTH, VOCAB, Training
from hybrid.experiments.few_steps.laws import Canvases, Judged, Steps
from hybrid.experiments.few_steps.methods import METHODS, PLAIN, predictions
from hybrid.results.table import Table, column, plus_minus, standard_error

log = logging.getLogger("hybrid.experiments.few_steps")
SHARPENED = "plain, at the source's entropy"
BEST = "plain, at its best temperature"
PERFECT = "plain, perfect network"


@dataclass
class Outcome:
    """One method at one number of steps; lists hold a value per seed."""

    passes: float
    judged: list[Judged] = field(default_factory=list)
    control: list[Judged] = field(default_factory=list)  # plain at the temperature of the same entropy
    temperature: list[float] = field(default_factory=list)  # that of the control


Outcomes = dict[tuple[str, Steps], Outcome]
"""(method, steps) -> what came out."""


def compare(training: Training, methods: Sequence[str], steps: Sequence[Steps], seeds: Sequence[int]) -> Outcomes:
    """Train every method with every seed, and compute the laws of its texts.

    Plain texts are judged as the network writes them, at two other temperatures, and as a perfect network would.
    """
    source, canvases = training.source, training.source.canvases
    found: Outcomes = {}

    def add(name: str, k: Steps, law: Tensor, passes: float, temperature: float | None = None) -> Outcome:
        outcome = found.setdefault((name, k), Outcome(passes))
        outcome.judged.append(Judged.of(law, source.law, LENGTH))
        if temperature is not None:
            outcome.temperature.append(temperature)
        return outcome

    perfect = canvases.product(laws.conditionals(canvases, source.law))
    for k in steps:
        add(PERFECT, k, laws.written(canvases, perfect, k), laws.forwards(k, LENGTH))
    for seed in seeds:
        plain = Tempered(canvases, predictions(training.network(PLAIN, seed), canvases))
        for name in methods:
            method = METHODS[name]
            seen = method.look(training.network(name, seed), canvases)
            for k in steps:
                law = method.law(seen, canvases, k)
                outcome = add(name, k, law, method.passes(k, LENGTH))
                log.info("%s, %s, K = %s, seed %d: %.3f", training.name, name, k, seed, outcome.judged[-1].variation)
                if name != PLAIN:
                    temperature = laws.at_entropy(plain.at(k), laws.entropy(law))
                    outcome.temperature.append(temperature)
                    outcome.control.append(Judged.of(plain.at(k)(temperature), source.law, LENGTH))
        for k in steps:
            same = laws.at_entropy(plain.at(k), laws.entropy(source.law))
            best = laws.nearest(plain.at(k), source.law)
            for name, temperature in ((SHARPENED, same), (BEST, best)):
                add(name, k, plain.at(k)(temperature), laws.forwards(k, LENGTH), temperature)
    return found


@dataclass(frozen=True)
class Tempered:
    """The laws of plain texts at any temperature: `log_probs` (c, L, V) at temperature 1."""

    canvases: Canvases
    log_probs: Tensor

    def at(self, steps: Steps) -> Callable[[float], Tensor]:
        """Return a function of the temperature."""

        def law(temperature: float) -> Tensor:
            proposals = self.canvases.product(laws.tempered(self.log_probs, temperature))
            return laws.written(self.canvases, proposals, steps)

        return law


@dataclass(frozen=True)
class Row:
    """One method; a column for each number of steps, a value per seed in each."""

    method: str = column("method")
    values: Mapping[Steps, list[float]] = column("K = {}", partial(plus_minus, digits=3))


@dataclass(frozen=True)
class PassesRow:
    """One method; a column for each number of steps."""

    method: str = column("method")
    values: Mapping[Steps, float] = column("K = {}", ".2f")


def tables(source: str, outcomes: Outcomes) -> list[Table]:
    """Tabulate a source: how far the laws are from its own, and whether by dependence or by sharpening."""
    names = list(dict.fromkeys(name for name, _ in outcomes))
    steps = list(dict.fromkeys(k for _, k in outcomes))

    def rows(values: Callable[[Outcome], list[float]]) -> list[Row]:
        found = [Row(name, {k: values(outcomes[name, k]) for k in steps}) for name in names]
        return [row for row in found if any(row.values.values())]

    controls = rows(lambda o: [j.variation for j in o.control])
    temperatures = rows(lambda o: o.temperature)
    passes = [PassesRow(name, {k: outcomes[name, k].passes for k in steps}) for name in names]
    parts = [
        Table(rows(lambda o: [j.variation for j in o.judged]), f"## {source}: total variation to the source"),
        Table(controls, "**Plain at the temperature of the same entropy** as the method: total variation"),
        Table(temperatures, "**That temperature**"),
        Table(rows(lambda o: [j.nll for j in o.judged]), "**NLL under the source**, nats per token"),
        Table(rows(lambda o: [j.entropy for j in o.judged]), "**Entropy**, nats per token"),
        Table(passes, "**Forwards of a text**, on average"),
    ]
    return [part for part in parts if part.rows]


def plot(results: Mapping[str, Outcomes]) -> np.ndarray:
    """Plot total variation against forwards of a text, a panel for each source and a curve for each method."""
    from hybrid.results.plot import Panel, curves

    panels = []
    for source, outcomes in results.items():
        drawn: dict[str, list[tuple[float, float, float]]] = {}
        for (name, _), outcome in outcomes.items():
            values = [j.variation for j in outcome.judged]
            error = standard_error(values) if len(values) > 1 else 0.0
            drawn.setdefault(name, []).append((outcome.passes, statistics.fmean(values), error))
        lines = {name: list(zip(*sorted(points), strict=True)) for name, points in drawn.items() if name != PERFECT}
        panels.append(Panel(source, "forwards of a text", "total variation", lines, {}, log_y=True))
    return curves(panels)


def explanation(methods: Sequence[str], forwards: int) -> str:
    return f"""\
Sources: Markov chains of {VOCAB} symbols of the first (`chain1`) and the second (`chain2`) order, texts of {LENGTH}
tokens, one block. All texts, and all partly written ones, are enumerated: what stands here has no noise but that of
training. K: steps of a block, cells of the linear time grid; B: one token a step. Every network has
{forwards:,} training forwards of a noisy text, those of its teacher included. ± is the standard error over seeds."""
