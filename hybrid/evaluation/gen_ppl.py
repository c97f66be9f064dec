"""Generative perplexity: how probable an evaluation model finds generated text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from hybrid.evaluation.base import Column, EvaluationModel, Metric, Texts


@dataclass(frozen=True)
class GenPpl(Metric):
    """exp of the nats per token of the evaluation model, and nats per byte of text.

    Both fall when text repeats itself: read them beside its entropy.
    """

    columns: ClassVar[tuple[Column, ...]] = (
        Column("gen-ppl", "gen_ppl", ",.2f"),
        Column("nats/byte", "judge_nats_per_byte", ".3f"),
    )
    needs_evaluation_model: ClassVar[bool] = True

    def measure(self, texts: Texts, reference: Texts) -> dict[str, float]:
        reading = texts.reading
        assert reading is not None
        return {
            "gen_ppl": reading.gen_ppl,
            "judge_nats_per_token": reading.nats_per_token,
            "judge_stderr": reading.stderr_per_token,
            "judge_nats_per_byte": reading.nats_per_byte,
            "texts_cut": int(reading.is_cut.sum()),
        }

    def notes(self, numbers: Sequence[Mapping[str, float]], model: EvaluationModel | None) -> list[str]:
        assert model is not None
        bound = " (a bound: upper ends)" if model.about["likelihood"] == "bound" else ""
        cut = max(of_line.get("texts_cut", 0) for of_line in numbers)
        short = f", which cuts up to {cut} texts to its {model.about['context']} tokens" if cut else ""
        found = [f"gen-ppl, nats/byte: of the judge {model.about['path']}{bound}{short}"]
        if any(math.isnan(of_line.get("judge_nats_per_byte", 0.0)) for of_line in numbers):
            found.append("nats/byte: no value (-) where the judge's tokens do not give the texts back")
        return found
