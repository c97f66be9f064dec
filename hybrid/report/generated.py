"""Compare what the decoders of the runs wrote: quality against speed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hybrid.evaluation import METRICS
from hybrid.evaluation.results import REAL, DecoderResult
from hybrid.report.groups import Group
from hybrid.results.text import formatted

REPETITIVE = 0.9  # of the entropy of real text

Pair = tuple[DecoderResult, DecoderResult]
"""A decoder in one run, and real text in the same."""


@dataclass(frozen=True)
class Written:
    """The texts of one decoder at one block size: means over the runs of a group."""

    group: str
    decoder: str
    block_size: int
    tokens_per_second: float
    nfe_per_token: float
    entropy: float
    nats_per_byte: float | None  # of the evaluation model; None without one
    real_nats_per_byte: float | None  # of real text
    real_entropy: float
    others: Mapping[str, str] = field(default_factory=dict)  # heading -> value, of metrics that are compared

    @property
    def is_repetitive(self) -> bool:
        """Whether its entropy is below that of real text: an evaluation model likes texts that repeat themselves."""
        return self.entropy < REPETITIVE * self.real_entropy


def written(groups: Sequence[Group]) -> list[Written]:
    """Average over the runs of each group, where all of them were evaluated with `--decoders`, with the same."""
    found = []
    for group in groups:
        by_decoder: dict[tuple[str, int], list[Pair]] = {}
        for run in group.runs:
            real = next((line for line in run.generated if line.decoder == REAL and "entropy" in line.metrics), None)
            for line in run.generated:
                if real is not None and line.decoder != REAL and line.block_size is not None and _is_whole(line):
                    by_decoder.setdefault((line.decoder, line.block_size), []).append((line, real))
        for (decoder, size), pairs in by_decoder.items():
            if len(pairs) == len(group.runs):
                found.append(_mean(group.label, decoder, size, pairs))
    return found


def _is_whole(line: DecoderResult) -> bool:
    return None not in (line.tokens_per_second, line.nfe_per_token) and "entropy" in line.metrics


def _mean(group: str, decoder: str, size: int, pairs: Sequence[Pair]) -> Written:
    lines, real = [line for line, _ in pairs], [real for _, real in pairs]

    def mean(key: str, source: Sequence[DecoderResult]) -> float:
        return statistics.fmean(line.metrics[key] for line in source)

    compared = [column for metric in METRICS.values() if metric.is_compared for column in metric.columns]
    judged = all("judge_nats_per_byte" in line.metrics for line in [*lines, *real])
    return Written(
        group, decoder, size,
        statistics.fmean(line.tokens_per_second or 0.0 for line in lines),
        statistics.fmean(line.nfe_per_token or 0.0 for line in lines),
        mean("entropy", lines),
        mean("judge_nats_per_byte", lines) if judged else None, mean("judge_nats_per_byte", real) if judged else None,
        mean("entropy", real),
        {c.heading: formatted(mean(c.key, lines), c.form) for c in compared if all(c.key in x.metrics for x in lines)},
    )  # fmt: skip


def front(points: Sequence[Written]) -> list[Written]:
    """Keep those that no other beats in both speed and quality, by speed; texts that repeat themselves do not count."""
    best: list[Written] = []
    for point in sorted(points, key=lambda w: (-w.tokens_per_second, w.nats_per_byte or 0.0)):
        if point.nats_per_byte is None or point.is_repetitive:
            continue
        if not best or point.nats_per_byte < (best[-1].nats_per_byte or 0.0):
            best.append(point)
    return best[::-1]
