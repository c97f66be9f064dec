"""The results of decoders: a line of the table, and of eval.json, per decoder and block size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hybrid.evaluation import METRICS
from hybrid.evaluation.answers import Answers
from hybrid.evaluation.base import Column, EvaluationModel, Metric
from hybrid.evaluation.setting import Setting
from hybrid.results.text import aligned, formatted
from hybrid.storage.fields import Fields, is_number

REAL = "(real text)"

_NO_METRICS = (
    "decoder", "block_size", "nfe_per_token", "tokens_per_second", "policy_nats_per_token", "solved", "solved_stderr",
    "right_tokens", "answers",
)  # fmt: skip
"""Keys of a line that are fields of it, not numbers of a metric."""


@dataclass(frozen=True)
class DecoderResult:
    """What one decoder costs at one block size, and what the metrics say of its texts.

    Attributes:
        decoder: as it was typed; REAL for pieces of real text, which have neither a block size nor costs.
        metrics: the numbers of all `METRICS` that apply, by their keys.
        nfe_per_token: forwards of a batch per token of a text.
        tokens_per_second: of all texts together.
        policy_nats_per_token: of the real text in the decoder's order; None where that has no likelihood.
        answers: of a split whose documents are prompts with answers.
    """

    decoder: str
    metrics: dict[str, float]
    block_size: int | None = None
    nfe_per_token: float | None = None
    tokens_per_second: float | None = None
    policy_nats_per_token: float | None = None
    answers: Answers | None = None

    def as_json(self) -> dict[str, Any]:
        """Make the line of eval.json."""
        if self.decoder == REAL:
            return {"decoder": self.decoder, **self.metrics}
        costs = {"nfe_per_token": self.nfe_per_token, "tokens_per_second": self.tokens_per_second}
        line = {"decoder": self.decoder, "block_size": self.block_size, **costs, **self.metrics}
        line["policy_nats_per_token"] = self.policy_nats_per_token
        if (a := self.answers) is not None:
            line |= {"solved": a.solved, "solved_stderr": a.stderr, "right_tokens": a.right_tokens, "answers": a.n}
        return line

    @classmethod
    def from_json(cls, line: Fields) -> DecoderResult:
        """Read a line that `as_json` has made; a metric without a value that can be drawn (null, say) is left out.

        Raises:
            ValueError: a field that is missing or of another kind.
        """
        answers = None
        if (n := line.integer("answers", 1, None)) is not None:
            solved, stderr, right = (line.number(name, least=0) for name in ("solved", "solved_stderr", "right_tokens"))
            answers = Answers(solved, stderr, right, n)
        numbers = {name: value for name, value in line.content.items() if name not in _NO_METRICS}
        return cls(
            line.text("decoder"),
            {name: float(value) for name, value in numbers.items() if is_number(value)},
            line.integer("block_size", 1, None),
            line.number("nfe_per_token", None, least=0),
            line.number("tokens_per_second", None, least=0),
            line.number("policy_nats_per_token", None),
            answers,
        )


def metrics_for(evaluation_model: EvaluationModel | None) -> list[Metric]:
    """Make all metrics that apply, with or without an evaluation model."""
    return [m() for m in METRICS.values() if evaluation_model is not None or not m.needs_evaluation_model]


def columns() -> Iterator[Column]:
    """Yield the columns of the table that follow the name of the decoder."""
    yield Column("block", "block_size", "d")
    yield Column("NFE/tok", "nfe_per_token", ".3f")
    yield Column("tok/s", "tokens_per_second", ",.0f")
    for metric in METRICS.values():
        yield from metric.columns
    yield Column("policy", "policy_nats_per_token", ".4f")
    yield Column("solved", "solved", ".3f")


def table(results: Sequence[DecoderResult]) -> str:
    """Format as plain text, one line per decoder and block size; `-` where there is no such number.

    A column in which no line has a value is not shown.
    """
    lines = [result.as_json() for result in results]
    shown = [column for column in columns() if any(line.get(column.key) is not None for line in lines)]
    cells = [["decoder", *(column.heading for column in shown)]]
    cells += [[line["decoder"], *(formatted(line.get(c.key), c.form) for c in shown)] for line in lines]
    return aligned(cells)


def notes(
    results: Sequence[DecoderResult], setting: Setting, evaluation_model: EvaluationModel | None,
    has_latent: bool = False,
) -> list[str]:  # fmt: skip
    """List what must be said below the table, of a model that has random numbers in MASK or has not."""
    prompts = f" behind {setting.prompt_tokens} prompt tokens" if setting.prompt_tokens else ""
    found = [
        f"{setting.samples} texts of {setting.new_tokens} tokens{prompts}; entropy in nats; NFE/tok: forwards of a "
        "batch per token of a text"
    ]
    if any(result.policy_nats_per_token is not None for result in results):
        latent = setting.generation.latent
        of_mask = f"; of MASK without random numbers, not of texts written with --latent {latent}"
        found.append(
            "policy: nats per token of the real text in the decoder's order, where that is deterministic"
            + (of_mask if has_latent and latent != "none" else "")
        )
    for metric in metrics_for(evaluation_model):
        found += metric.notes([result.metrics for result in results], evaluation_model)
    return found
