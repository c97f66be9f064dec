"""What the decoders of the runs wrote: quality against speed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hybrid.evaluation.results import REAL
from hybrid.report.groups import Group

REPETITIVE = 0.9  # of the entropy of real text
_NEEDED = {"block_size", "tokens_per_second", "nfe_per_token", "entropy"}


@dataclass(frozen=True)
class Written:
    """The texts of one decoder at one block size: means over the runs of a group."""

    group: str
    decoder: str
    block_size: int
    tokens_per_second: float
    nfe_per_token: float
    entropy: float
    nats_per_byte: float | None  # of the judge; None without one
    real_nats_per_byte: float | None  # the judge, of real text
    real_entropy: float

    @property
    def is_repetitive(self) -> bool:
        """A judge likes texts that repeat themselves; they have a lower entropy than real ones."""
        return self.entropy < REPETITIVE * self.real_entropy


def written(groups: Sequence[Group]) -> list[Written]:
    """Of all groups whose runs were evaluated with `--decoders`, all of them with the same."""
    found = []
    for group in groups:
        by_decoder: dict[tuple[str, int], list[dict]] = {}
        for run in group.runs:
            real = next((line for line in run.generated if line["decoder"] == REAL and "entropy" in line), None)
            for line in run.generated:
                if real is not None and line["decoder"] != REAL and line.keys() >= _NEEDED:
                    pair = {**line, "real": real}
                    by_decoder.setdefault((line["decoder"], line["block_size"]), []).append(pair)
        for (decoder, size), lines in by_decoder.items():
            if len(lines) == len(group.runs):
                found.append(_mean(group.label, decoder, size, lines))
    return found


def _mean(group: str, decoder: str, size: int, lines: Sequence[dict]) -> Written:
    def mean(key: str, source: Sequence[dict]) -> float:
        return statistics.fmean(line[key] for line in source)

    real = [line["real"] for line in lines]
    judged = all("judge_nats_per_byte" in line for line in [*lines, *real])
    return Written(
        group, decoder, size, mean("tokens_per_second", lines), mean("nfe_per_token", lines), mean("entropy", lines),
        mean("judge_nats_per_byte", lines) if judged else None, mean("judge_nats_per_byte", real) if judged else None,
        mean("entropy", real),
    )  # fmt: skip


def front(points: Sequence[Written]) -> list[Written]:
    """Those that no other beats in both speed and quality, by speed; texts that repeat themselves do not count."""
    best: list[Written] = []
    for point in sorted(points, key=lambda w: (-w.tokens_per_second, w.nats_per_byte or 0.0)):
        if point.nats_per_byte is None or point.is_repetitive:
            continue
        if not best or point.nats_per_byte < (best[-1].nats_per_byte or 0.0):
            best.append(point)
    return best[::-1]
