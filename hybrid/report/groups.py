"""Runs that differ in their seed alone are one group; what differs between groups is what is compared."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hybrid.config import NO_MATTER, ROUNDING, flatten
from hybrid.likelihoods.rows import SplitLikelihood
from hybrid.report.run_record import RunRecord
from hybrid.results.table import standard_error

_SAME_MODEL = (*NO_MATTER, *ROUNDING, "eval.")
"""Settings that runs of one model need not share."""
BLOCK_SIZE = "objective.block_size"


@dataclass(frozen=True)
class Mean:
    """Over the seeds of a group. The error is that of the mean: over seeds, or of the noise if there is one seed."""

    value: float
    error: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float], noise: Sequence[float | None] = ()) -> Mean:
        error = standard_error(values) if len(values) > 1 else (noise[0] if noise else None)
        return cls(statistics.fmean(values), error, len(values))

    def text(self, digits: int = 3) -> str:
        return f"{self.value:.{digits}f}" + ("" if self.error is None else f" ± {self.error:.{digits}f}")


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone. `settings` are the differences from other groups, dotted key -> value."""

    label: str
    settings: dict[str, Any]
    runs: list[RunRecord]

    @property
    def first(self) -> RunRecord:
        return self.runs[0]

    @property
    def is_autoregressive(self) -> bool:
        return self.first.is_autoregressive

    @property
    def family(self) -> tuple[tuple[str, Any], ...]:
        """Its differences but for the block size: what one curve over block sizes has in common."""
        return tuple((key, value) for key, value in self.settings.items() if key != BLOCK_SIZE)

    @property
    def evaluated(self) -> list[int]:
        """Block sizes at which every run of the group was evaluated."""
        sizes = [{m.block_size for m in run.likelihoods} for run in self.runs]
        return sorted(set.intersection(*sizes))

    @property
    def own(self) -> int | None:
        """The block size that it was trained for, if it is one and was evaluated."""
        sizes = self.first.block_sizes
        return sizes[0] if len(sizes) == 1 and sizes[0] in self.evaluated else None

    def measured(self, block_size: int) -> list[SplitLikelihood]:
        return [next(m for m in run.likelihoods if m.block_size == block_size) for run in self.runs]

    def nats(self, block_size: int) -> Mean:
        found = self.measured(block_size)
        return Mean.of([m.nats_per_token for m in found], [m.known_stderr for m in found])

    def bits_per_byte(self, block_size: int) -> Mean | None:
        """Average bits per byte; None if the tokens of a run are not the text."""
        found = self.measured(block_size)
        bits = [m.bits_per_byte for m in found if m.bits_per_byte is not None]
        noise = [None if m.known_stderr is None else m.known_stderr * (m.bits_per_nat or 0.0) for m in found]
        return Mean.of(bits, noise) if len(bits) == len(found) else None

    @property
    def has_bits(self) -> bool:
        """Whether it has bits per byte wherever it was evaluated."""
        return all(self.bits_per_byte(size) is not None for size in self.evaluated)

    def method(self, block_size: int) -> str:
        return self.measured(block_size)[0].likelihood

    def by_count(self, block_size: int) -> dict[int, float]:
        """Average over the runs the loss of a masked token by the number that are masked."""
        tables = [m.by_count for m in self.measured(block_size)]
        shared = sorted(set.intersection(*(set(t) for t in tables)))
        return {n: statistics.fmean(t[n] for t in tables) for n in shared}

    def over_runs(self, value: Callable[[RunRecord], float]) -> Mean:
        return Mean.of([value(run) for run in self.runs])


def differences(runs: Iterable[RunRecord]) -> dict[str, list[Any]]:
    """Find the settings in which runs differ, without seeds and the like: dotted key -> the values of all runs."""
    settings = [flatten(run.config) for run in runs]
    names = [name for name in dict.fromkeys(key for s in settings for key in s) if not name.startswith(_SAME_MODEL)]
    columns = {name: [s.get(name) for s in settings] for name in names}
    return {name: values for name, values in columns.items() if len(set(map(repr, values))) > 1}


def common(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Find the settings that all runs share."""
    differ = differences(runs)
    return {k: v for k, v in flatten(runs[0].config).items() if k not in differ and not k.startswith(_SAME_MODEL)}


def gather(runs: Sequence[RunRecord]) -> list[Group]:
    """Gather runs of one model; autoregressive ones first, then by family as they come, and by block size."""
    differ = differences(runs)
    gathered: dict[str, list[int]] = {}
    for i in range(len(runs)):
        gathered.setdefault(repr([values[i] for values in differ.values()]), []).append(i)
    groups = []
    for members in gathered.values():
        settings = {key: values[members[0]] for key, values in differ.items()}
        groups.append(Group("", settings, [runs[i] for i in members]))
    labels = [_label(group) for group in groups]
    for i, group in enumerate(groups):
        unique = labels.count(labels[i]) == 1
        label = labels[i] if unique else ", ".join(f"{k} = {v}" for k, v in group.settings.items())
        groups[i] = replace(group, label=label or group.first.name)
    families = list(dict.fromkeys(group.family for group in groups))
    return sorted(
        groups, key=lambda g: (not g.is_autoregressive, families.index(g.family), max(g.first.block_sizes), g.label)
    )


def _label(group: Group) -> str:
    """Find the name of its runs without the seed; empty if they have no name in common and nothing tells them apart."""
    names = {_without_seed(run) for run in group.runs}
    return names.pop() if len(names) == 1 else ", ".join(str(v) for v in group.settings.values())


def _without_seed(run: RunRecord) -> str:
    """`b4-seed-0`, `b4_s0` or `b4/seed0` of a run whose seed is 0 -> `b4`.

    A number is only taken for the seed if it is that of the run, and its word only if no letter stands before it:
    `bs16` and `steps300` end in something else.
    """
    ending = rf"[-_./]?(?<![^\W\d_])(seed[-_=]?|s)0*{run.config.run.seed}$"
    return re.sub(ending, "", run.name, flags=re.IGNORECASE)
