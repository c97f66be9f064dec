"""Diversity of texts, against counts by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.evaluation.diversity import distinct, entropy, repetition, self_bleu

ROWS = st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=5)


def test_entropy_is_that_of_each_text_in_nats() -> None:
    assert entropy([[7, 7, 7]]) == 0
    assert entropy([[1, 2, 3, 4]]) == pytest.approx(math.log(4))
    assert entropy([[1, 1, 2, 2], [5, 5, 5, 5]]) == pytest.approx(math.log(2) / 2)  # not that of all tokens together
    assert entropy([[0, 0, 0, 1]]) == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3))
    assert entropy([[1, 2], []]) == pytest.approx(math.log(2))  # a text of no token has none
    assert math.isnan(entropy([])) and math.isnan(entropy([[]]))


def test_distinct_counts_over_all_texts() -> None:
    assert distinct([[1, 2, 1], [1, 2, 9]], 1) == 3 / 6
    assert distinct([[1, 2, 1], [1, 2, 9]], 2) == 3 / 4  # 12 twice, 21, 29; none crosses from text to text
    assert math.isnan(distinct([[1, 2]], 3))


def test_repetition_is_within_a_text() -> None:
    assert repetition([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]) == 0
    assert repetition([[1] * 8]) == 4 / 5  # five 4-grams, of which four came before
    assert repetition([[1, 2, 1, 2, 1], [1, 2, 3, 4]], n=2) == pytest.approx((2 / 4 + 0) / 2)
    assert math.isnan(repetition([[1, 2, 3]]))


@given(ROWS, st.integers(1, 4))
def test_the_figures_equal_a_count_by_hand(rows: list[list[int]], n: int) -> None:
    grams = [[tuple(row[i : i + n]) for i in range(len(row) - n + 1)] for row in rows]
    together = [gram for of_row in grams for gram in of_row]
    if together:
        assert distinct(rows, n) == len(set(together)) / len(together)
        shares = [sum(gram in row[:i] for i, gram in enumerate(row)) / len(row) for row in grams if row]
        assert repetition(rows, n) == pytest.approx(sum(shares) / len(shares))
    if any(rows):
        used = [[row.count(v) / len(row) for v in set(row)] for row in rows if row]
        expected = [-sum(p * math.log(p) for p in of_row) for of_row in used]
        assert entropy(rows) == pytest.approx(sum(expected) / len(expected))


def test_self_bleu_of_equal_and_of_different_texts() -> None:
    same = ["the value of the list is set by name"] * 3
    assert self_bleu(same) == pytest.approx(1.0)
    other = ["the value of the list is set by name", "errors return nothing when all keys exist", "a b c d e f g h"]
    assert self_bleu(other) < 0.05
    assert self_bleu(other) < self_bleu([*other[:2], other[0] + " and more"]) < 1
    assert math.isnan(self_bleu(same[:1]))


def test_self_bleu_is_sacrebleus() -> None:
    import sacrebleu

    texts = ["the value of a list is set", "the value of a name is set", "a list of the names", "the value is set"]

    def expected(among: list[str]) -> float:
        scores = [sacrebleu.sentence_bleu(t, [*among[:i], *among[i + 1 :]]).score for i, t in enumerate(among)]
        return sum(scores) / len(scores) / 100

    assert self_bleu(texts) == pytest.approx(expected(texts))
    assert self_bleu(texts, most=3) == pytest.approx(expected(texts[:3]))
