"""Lines of decoders as text."""

from __future__ import annotations

import json
import math

import pytest

from hybrid.evaluation.answers import Answers
from hybrid.evaluation.results import REAL, DecoderResult, columns, table
from hybrid.likelihoods.rows import SplitLikelihood
from hybrid.storage.fields import Fields
from hybrid.storage.json_files import to_json


def test_the_table_of_texts_lines_up() -> None:
    numbers = {"entropy": 3.2, "gen_ppl": 1234.5}
    line = DecoderResult("margin", numbers, 256, tokens_per_second=12345.6)
    text = table([DecoderResult(REAL, {"entropy": 3.0}), line]).splitlines()
    assert len({len(row) for row in text}) == 1
    assert text[0].split() == ["decoder", "block", "tok/s", "entropy", "gen-ppl"]
    assert text[2].split() == ["(real", "text)", "-", "-", "3.000", "-"]
    assert text[3].split() == ["margin", "256", "12,346", "3.200", "1,234.50"]
    everything = {column.key: 0 for column in columns()}
    assert len(table([DecoderResult("confidence:steps=4", everything)]).splitlines()[0]) <= 150


def as_read(line: DecoderResult | SplitLikelihood) -> Fields:
    return Fields(json.loads(to_json(line.as_json())), "eval.json")


def test_a_line_of_eval_json_is_read_back_as_it_was() -> None:
    numbers = {"entropy": 3.25, "a_metric_of_ones_own": -0.5, "texts_cut": 0}
    answers = Answers(0.75, 0.125, 0.875, 4)
    for line in (
        DecoderResult(REAL, numbers),
        DecoderResult("margin", numbers, 4, 0.5, 120.0),
        DecoderResult("margin", {}, 4, 0.5, 120.0, policy_nats_per_token=2.5, answers=answers),
    ):
        assert DecoderResult.from_json(as_read(line)) == line
    without = DecoderResult.from_json(as_read(DecoderResult(REAL, {"entropy": 3.0, "mauve_like": math.nan})))
    assert without.metrics == {"entropy": 3.0}, "no value, no key"
    with pytest.raises(ValueError, match=r"eval.json: policy_nats_per_token: 'x' is not a finite number"):
        DecoderResult.from_json(Fields({"decoder": "margin", "policy_nats_per_token": "x"}, "eval.json"))


def test_a_likelihood_of_eval_json_is_read_back_as_it_was() -> None:
    for line in (
        SplitLikelihood(1, "exact", 1.5, 0.0, None, 9),
        SplitLikelihood(4, "bound", 1.5, 0.25, 2.0, 9, {1: 0.5, 4: 1.5}),
        SplitLikelihood(4, "policy", 1.5, 0.0, 2.0, 9, decoder="margin:threshold=0.5"),
    ):
        assert SplitLikelihood.from_json(as_read(line)) == line
    one_draw = SplitLikelihood.from_json(as_read(SplitLikelihood(4, "bound", 1.5, math.nan, 2.0)))
    assert math.isnan(one_draw.stderr) and one_draw.known_stderr is None
