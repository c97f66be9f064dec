"""Lines of decoders: costs by hand, and texts that are those of `LanguageModel.generate`."""

from __future__ import annotations

import pytest

import hybrid
from hybrid.data.batches import PackedTokens
from hybrid.decoding import DECODERS, GenerationConfig
from hybrid.decoding.engine import Generation, generate_shared, n_batches
from hybrid.distributed import Ranks
from hybrid.evaluation import comparison
from hybrid.evaluation.comparison import Comparison
from hybrid.evaluation.divergence import mauve_like
from hybrid.evaluation.diversity import distinct, entropy
from hybrid.evaluation.own_model import OwnModel
from hybrid.evaluation.setting import Setting

SETTING = Setting(5, 16, generation=GenerationConfig(seed=1))


def test_costs_of_a_line_by_hand(
    lm: hybrid.LanguageModel, split: PackedTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five texts of 16 tokens in 8 forwards and a quarter of a second."""
    rows = [list(range(16))] * 5
    made = Generation(rows, nfe=8, seconds=0.25)
    monkeypatch.setattr(comparison, "generate_shared", lambda *arguments: made)
    line = Comparison(lm, split, SETTING).line(4, "margin", DECODERS["margin"]())
    assert line.nfe_per_token == 0.5 and line.tokens_per_second == 320.0 and line.metrics["distinct_1"] == 16 / 80


def test_texts_are_the_same_in_batches_and_so_are_the_forwards_of_one(lm: hybrid.LanguageModel) -> None:
    engine, prompts = lm.engine(4, "left_to_right", seed=2), [[1], [], [2, 3], [1], [4, 5]]
    whole, parts = (generate_shared(engine, prompts, 8, batch=n) for n in (64, 2))
    assert (whole.tokens, whole.sequences) == (parts.tokens, parts.sequences)
    assert whole.finish_reasons == parts.finish_reasons
    assert len(whole.tokens) == 5 and parts.nfe > whole.nfe
    assert [n_batches(n, batch=2) for n in (1, 2, 3, 5)] == [1, 1, 2, 3]
    assert [n_batches(n, Ranks(0, 3), 2) for n in (6, 7, 12, 13)] == [1, 2, 2, 3]


def test_forwards_are_those_of_one_batch(
    lm: hybrid.LanguageModel, split: PackedTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Generation([list(range(16))] * 130, nfe=24, seconds=1.0)  # in three batches of 64 at most
    monkeypatch.setattr(comparison, "generate_shared", lambda *arguments: made)
    setting = Setting(samples=130, new_tokens=16)
    assert Comparison(lm, split, setting).line(4, "x", DECODERS["margin"]()).nfe_per_token == 0.5


def test_all_settings_of_sampling_count(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    """The texts are those that the model writes with them, behind the prompts of the split."""
    decoder = {"name": "left_to_right"}
    for options in ({"seed": 3}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.4}):
        c = Comparison(lm, split, Setting(3, 12, 4, GenerationConfig(**options)))
        texts = lm.generate(c.prompts, 12, 4, decoder, stop_at_end=False, **options).tokens
        line = c.line(4, "x", DECODERS["left_to_right"]())
        assert line.metrics["entropy"] == entropy(texts) and line.metrics["distinct_2"] == distinct(texts, 2)


def test_texts_are_held_against_real_ones(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    c = Comparison(lm, split, Setting(20, 16, generation=GenerationConfig(seed=1)), OwnModel(lm))
    real, line = c.lines([4], {"x": DECODERS["left_to_right"]()})
    written = lm.generate([[]] * 20, 16, 4, "left_to_right", seed=1, stop_at_end=False).tokens
    features = [
        OwnModel(lm).read([lm.tokenizer.decode(row) for row in rows]).features for rows in (c.pieces, c.others, written)
    ]
    assert real.metrics["mauve_like"] == mauve_like(features[1], features[0])
    assert line.metrics["mauve_like"] == mauve_like(features[2], features[0])
