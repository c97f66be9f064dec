"""Texts of decoders, beside real text."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import pytest

import hybrid
from hybrid.data.batches import PackedTokens
from hybrid.decoding import DECODERS, GenerationConfig
from hybrid.decoding.fixed_order import LeftToRight
from hybrid.evaluation.comparison import Comparison
from hybrid.evaluation.divergence import LEAST
from hybrid.evaluation.diversity import Entropy, distinct, entropy, repetition, self_bleu
from hybrid.evaluation.own_model import OwnModel
from hybrid.evaluation.results import REAL, notes, table
from hybrid.evaluation.scores import Scores
from hybrid.evaluation.setting import Setting, choose_decoders

pytestmark = pytest.mark.usefixtures("any_size_may_be_asked_for")

SETTING = Setting(5, 16, generation=GenerationConfig(seed=1))


@pytest.mark.slow
def test_a_line_holds_the_figures_of_the_texts(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    setting = dataclasses.replace(SETTING, samples=LEAST)
    c = Comparison(lm, split, setting, OwnModel(lm))
    real, margin = c.lines([4], {"margin": DECODERS["margin"]()})
    result = lm.generate([[]] * LEAST, 16, 4, "margin", seed=1, stop_at_end=False)
    texts = [lm.tokenizer.decode(row) for row in result.tokens]
    rows, written = result.tokens, margin.metrics
    expected = {f"distinct_{n}": distinct(rows, n) for n in (1, 2, 3)} | {"self_bleu": self_bleu(texts)}
    expected |= {"entropy": entropy(rows), "repetition": repetition(rows)}
    assert {key: written[key] for key in expected} == expected
    reading = OwnModel(lm).read(texts)
    assert margin.metrics["gen_ppl"] == pytest.approx(reading.gen_ppl)
    assert margin.metrics["judge_nats_per_byte"] == pytest.approx(reading.nats_per_byte)
    assert (margin.decoder, margin.block_size) == ("margin", 4)
    assert margin.nfe_per_token == result.nfe / 16 == 1.0
    assert margin.tokens_per_second > 0 and 0 < margin.metrics["mauve_like"] <= 1
    assert real.decoder == REAL and real.block_size is None and real.nfe_per_token is None
    assert not {"block_size", "nfe_per_token", "policy_nats_per_token"} & real.as_json().keys()


def test_too_few_texts_have_no_distance_from_real_text(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    model = OwnModel(lm)
    for samples, real_has in ((1, False), (LEAST - 1, False), (LEAST, True)):
        setting = dataclasses.replace(SETTING, samples=samples, new_tokens=4)
        lines = Comparison(lm, split, setting, model).lines([4], {"margin": DECODERS["margin"]()})
        assert [math.isnan(line.metrics["mauve_like"]) for line in lines] == [not real_has] * 2
        said = any(f"MAUVE* needs {LEAST} texts" in note for note in notes(lines, setting, model))
        assert said is not real_has
        cells = table(lines).splitlines()
        at = cells[0].split().index("MAUVE*")
        assert (cells[-1].split()[at] == "-") is not real_has


def test_texts_go_on_behind_an_end_of_text(
    lm: hybrid.LanguageModel, split: PackedTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All have the same length, so that their figures compare."""
    monkeypatch.setattr(lm.model, "end_token_ids", frozenset(lm.tokenizer.encode("e")))
    seen = []
    monkeypatch.setattr(Entropy, "measure", lambda self, texts, reference: seen.append(texts.rows) or {})
    Comparison(lm, split, SETTING).line(4, "margin", DECODERS["margin"]())
    assert [len(row) for row in seen[0]] == [16] * 5


def test_real_text_is_as_long_and_from_the_split(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    setting = Setting(samples=4, new_tokens=10, prompt_tokens=6)
    c = Comparison(lm, split, setting)
    assert [len(piece) for piece in [*c.pieces, *c.others]] == [10] * 8
    rows = [row.tolist() for row in split.rows(range(split.n_rows)).tokens]
    places = []
    for prompt, piece in zip(c.prompts, c.pieces, strict=True):
        places.append(rows.index(next(row for row in rows if row[:16] == prompt + piece)))
    kept = [next(i for i, row in enumerate(rows) if row[6:16] == piece) for piece in c.others]
    assert len({*places, *kept}) == 8  # what real text is compared with is other text
    assert places == sorted(places) and max(places) > split.n_rows // 2  # from all over the split


def test_a_split_with_fewer_rows_than_samples(
    lm: hybrid.LanguageModel, split: PackedTokens, caplog: pytest.LogCaptureFixture
) -> None:
    few = PackedTokens(split.tokens[: 3 * 32], None, split.counts, 32, split.end_of_text)
    c = Comparison(lm, few, Setting(samples=5, new_tokens=8, prompt_tokens=4), OwnModel(lm))
    assert "--samples: the split has 3 rows" in caplog.text
    assert len(c.prompts) == 5 and c.prompts[3] == c.prompts[0] and len(c.pieces) == 3 and c.others == []
    assert "mauve_like" not in c.real_text().metrics


def test_new_decoders_are_compared_too(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    @dataclass(frozen=True)
    class Mine(LeftToRight):
        pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DECODERS, "mine", Mine)
        chosen = choose_decoders(["all"], "--decoders")
    assert list(chosen) == [*DECODERS, "mine"]
    scores = Scores(lm, split, contextlib.nullcontext, rows=4)
    line = Comparison(lm, split, SETTING, policy=scores.policy).line(4, "mine", chosen["mine"])
    assert line.nfe_per_token == 1.0 and (line.policy_nats_per_token or 0) > 0


def test_what_is_solved(lm: hybrid.LanguageModel, split: PackedTokens, caplog: pytest.LogCaptureFixture) -> None:
    ids, end = lm.tokenizer.encode("The value is se"), split.end_of_text
    row = [*ids, *lm.generate([ids], 16, 4, "margin", temperature=0).tokens[0][:16]]
    if end in row:
        row = [t if t != end else ids[0] for t in row]
    rows = np.array([[*row, end], [*row[:-1], (row[-1] + 1) % (end - 1), end]], dtype=np.uint16)
    is_target = np.zeros_like(rows, dtype=np.uint8)
    is_target[:, len(ids) :] = 1
    task = PackedTokens(rows.ravel(), is_target.ravel(), split.counts, rows.shape[1], end)
    setting = Setting(2, 8, generation=GenerationConfig(temperature=0.0))
    line = Comparison(lm, task, setting).line(4, "margin", DECODERS["margin"]())
    assert (line.as_json()["solved"], line.as_json()["answers"]) == (0.5, 2)
    ragged = PackedTokens(rows.ravel(), is_target.ravel(), split.counts, rows.shape[1] - 1, end)
    c = Comparison(lm, ragged, setting)
    for _ in range(2):
        assert "solved" not in c.line(4, "margin", DECODERS["margin"]()).as_json()
    assert caplog.text.count("solved: left out: data.seq_len") == 1
