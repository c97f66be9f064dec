"""Methods side by side on a source: what they write, and plain texts that are as diverse as theirs."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from hybrid.experiments.few_steps.laws import Steps
from hybrid.experiments.few_steps.methods import PLAIN
from hybrid.experiments.few_steps.source import AT_BEST, Figures, Source
from hybrid.results.table import Table, column, plus_minus, standard_error

log = logging.getLogger("hybrid.experiments.few_steps")


@dataclass
class Outcome:
    """One method at one number of steps; lists hold a value per seed."""

    figures: list[Figures] = field(default_factory=list)
    temperature: list[float] = field(default_factory=list)  # of its texts, where it was chosen
    control: list[Figures] = field(default_factory=list)  # plain at the temperature of the same entropy
    control_temperature: list[float] = field(default_factory=list)


Outcomes = dict[tuple[str, Steps], Outcome]
"""(method, steps) -> what came out."""


def compare(source: Source, methods: Sequence[str], steps: Sequence[Steps], seeds: Sequence[int]) -> Outcomes:
    """Train every method with every seed, and judge what it writes.

    Plain texts are judged at the source's temperature, at others that it chooses, and at that of the entropy that the
    texts of each other method have. Some sources judge every method at its best temperature, too.
    """
    found: Outcomes = {}

    def add(name: str, k: Steps, figures: Figures) -> Outcome:
        outcome = found.setdefault((name, k), Outcome())
        outcome.figures.append(figures)
        return outcome

    for k in steps:
        for name, figures in source.references(k).items():
            add(name, k, figures)
    for seed in seeds:
        plain = source.written_by(PLAIN, seed)
        for name in methods:
            written = plain if name == PLAIN else source.written_by(name, seed)
            for k in steps:
                figures = written(k, source.temperature)
                outcome = add(name, k, figures)
                log.info("%s, K = %s, seed %d: %s %.3f", name, k, seed, source.judged_by, figures[source.judged_by])
                best = source.best_temperature(written, k)
                if best is not None:
                    add(AT_BEST.format(name), k, written(k, best)).temperature.append(best)
                if name == PLAIN or "entropy" not in figures:
                    continue
                temperature = source.same_entropy(plain, k, figures["entropy"])
                if temperature is not None:
                    outcome.control_temperature.append(temperature)
                    outcome.control.append(plain(k, temperature))
        for k in steps:
            for name, temperature in source.temperatures(plain, k).items():
                add(name, k, plain(k, temperature)).temperature.append(temperature)
    return found


@dataclass(frozen=True)
class Row:
    """One method; a column for each number of steps, a value per seed in each."""

    method: str = column("method")
    values: Mapping[Steps, str | None] = column("K = {}")


def tables(name: str, source: Source, outcomes: Outcomes) -> list[str | Table]:
    """Tabulate a source: how good the texts are, and whether by dependence or by sharpening."""
    names = list(dict.fromkeys(name for name, _ in outcomes))
    steps = list(dict.fromkeys(k for _, k in outcomes))

    def table(caption: str, digits: int, values: Callable[[Outcome], list[float]]) -> Table:
        shown = partial(plus_minus, digits=digits)
        rows = []
        for method in names:
            found = {k: values(outcomes[method, k]) for k in steps if (method, k) in outcomes}
            rows.append(Row(method, {k: shown(found[k]) if found.get(k) else None for k in steps}))
        return Table([row for row in rows if any(row.values.values())], f"**{caption}**")

    def of(key: str) -> Callable[[Outcome], list[float]]:
        return lambda outcome: [figures[key] for figures in outcome.figures if key in figures]

    first, *others = source.captions.items()
    key, caption = first
    parts = [
        table(caption.heading, caption.digits, of(key)),
        table(
            f"Plain at the temperature of the same entropy as the method: {caption.heading}",
            caption.digits, lambda outcome: [figures[key] for figures in outcome.control],
        ),
        table("Plain at the same entropy: its temperature", 2, lambda outcome: outcome.control_temperature),
        table("Temperature, where it was chosen", 2, lambda outcome: outcome.temperature),
        *(table(caption.heading, caption.digits, of(key)) for key, caption in others),
    ]  # fmt: skip
    return [f"## {name}\n\n{source.describe()}", *(part for part in parts if part.rows)]


def plot(sources: Mapping[str, tuple[Source, Outcomes]]) -> np.ndarray:
    """Plot what methods are judged by against forwards, a panel for each source and a curve for each method."""
    from hybrid.results.plot import Panel, curves

    panels = []
    for name, (source, outcomes) in sources.items():
        drawn: dict[str, list[tuple[float, float, float]]] = {}
        for (method, _), outcome in outcomes.items():
            if any("forwards" not in figures for figures in outcome.figures):
                continue
            values = [figures[source.judged_by] for figures in outcome.figures]
            forwards = statistics.fmean(figures["forwards"] for figures in outcome.figures)
            error = standard_error(values) if len(values) > 1 else 0.0
            drawn.setdefault(method, []).append((forwards, statistics.fmean(values), error))
        lines = {method: list(zip(*sorted(points), strict=True)) for method, points in drawn.items()}
        heading = source.captions[source.judged_by].heading
        forwards_heading = source.captions["forwards"].heading
        panels.append(Panel(f"{name}: {heading}", forwards_heading, "", lines, {}))
    return curves(panels)


EXPLANATION = """\
K: steps of a block. Every network of a source has the same number of training forwards of a noisy text, those of its
teacher included; a method that averages over M draws of a latent pays M for a text. `start` is what methods with a
start begin from, after half of the forwards. Where entropies are known, plain texts stand beside each method at the
temperature of its entropy, or the nearest to it: what is not better than these is sharpening. ± is the standard error
over seeds; a figure without it is of one seed, or the same for all."""
