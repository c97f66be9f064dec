"""Diversity of texts, and the MAUVE-like divergence between two sets of features."""

from __future__ import annotations

import builtins
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.evaluation import divergence, quality
from hybrid.evaluation.divergence import frontier_area, histogram, mauve_like
from hybrid.evaluation.quality import distinct, entropy, measure, repetition, self_bleu

ROWS = st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=5)


# ---------------------------------------------------------------------------------------------------------------------
# Diversity


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


def test_self_bleu_is_sacrebleus(monkeypatch: pytest.MonkeyPatch) -> None:
    import sacrebleu

    texts = ["the value of a list is set", "the value of a name is set", "a list of the names", "the value is set"]

    def expected(among: list[str]) -> float:
        scores = [sacrebleu.sentence_bleu(t, [*among[:i], *among[i + 1 :]]).score for i, t in enumerate(among)]
        return sum(scores) / len(scores) / 100

    assert self_bleu(texts) == pytest.approx(expected(texts))
    monkeypatch.setattr(quality, "MAX_BLEU_TEXTS", 3)
    assert self_bleu(texts) == pytest.approx(expected(texts[:3]))


def test_all_figures_at_once() -> None:
    rows, texts = [[1, 2, 3, 1, 2, 3], [4, 5, 6, 7, 8, 9]], ["a b c a b c", "d e f g h i"]
    q = measure(rows, texts)
    assert (q.entropy, q.repetition, q.self_bleu) == (entropy(rows), repetition(rows, 4), self_bleu(texts))
    assert (q.distinct_1, q.distinct_2, q.distinct_3) == tuple(distinct(rows, n) for n in (1, 2, 3))


# ---------------------------------------------------------------------------------------------------------------------
# MAUVE-like


def features(n: int, centre: float, seed: int) -> np.ndarray:
    """(n, 8) around one of two far directions per text."""
    rng = np.random.default_rng(seed)
    side = rng.integers(0, 2, n)
    base = np.zeros((2, 8))
    base[0, 0], base[1, 1] = 1, 1
    base[:, 2] = centre
    return base[side] + 0.05 * rng.standard_normal((n, 8))


def test_two_samples_of_the_same_and_of_different_texts() -> None:
    real = features(200, 0.0, 0)
    assert mauve_like(real, real) == pytest.approx(1.0)
    assert mauve_like(features(200, 0.0, 1), real) > 0.9
    assert mauve_like(features(200, 5.0, 2), real) < 0.05
    assert mauve_like(real, features(200, 5.0, 2)) == pytest.approx(mauve_like(features(200, 5.0, 2), real), abs=0.02)


@pytest.mark.parametrize("generated, reference, clusters", [(100, 140, 10), (150, 96, 10), (24, 300, 2)])
def test_there_is_a_cluster_for_every_tenth_text_of_the_smaller_set(generated, reference, clusters) -> None:
    rng = np.random.default_rng(0)
    one, two = rng.standard_normal((generated, 6)), rng.standard_normal((reference, 6)) + 0.5
    assert mauve_like(one, two) == mauve_like(one, two, clusters=clusters)
    assert mauve_like(one, two) != mauve_like(one, two, clusters=clusters - 1 or 1)
    if min(generated, reference) > 2 * clusters:
        assert mauve_like(one, two) != mauve_like(one, two, clusters=2 * clusters)


def test_it_is_the_area_of_histograms_over_the_clusters_of_both_sets() -> None:
    """Two tight groups of directions, so that the two clusters are known: 16 and 4 of the texts against 6 and 18."""
    rng = np.random.default_rng(0)

    def texts(first: int, second: int) -> np.ndarray:
        return np.array([[1.0, 0, 0]] * first + [[0, 1.0, 0]] * second) + 0.01 * rng.standard_normal(
            (first + second, 3)
        )

    p, q = np.array([16.5, 4.5]) / 21, np.array([6.5, 18.5]) / 25
    assert mauve_like(texts(16, 4), texts(6, 18)) == pytest.approx(frontier_area(p, q))


@pytest.mark.parametrize("seed", [0, 3])
def test_the_published_pipeline_step_by_step(seed: int) -> None:
    """Unit length; the fewest principal components with nine tenths of the variance; the best of five k-means; half a
    count for every cell; 25 mixtures, exp(-5 KL) of each."""
    rng = np.random.default_rng(1)
    one, two = (rng.standard_normal((60, 6)) * [3, 2, 1, 1, 0.5, 0.2] + shift for shift in (0.0, 0.6))
    unit = np.concatenate([one, two])
    unit = unit / np.sqrt((unit**2).sum(1))[:, None]
    centred = unit - unit.mean(0)
    _, s, axes = np.linalg.svd(centred, full_matrices=False)
    share = np.cumsum(s**2) / (s**2).sum()
    kept = int((share <= 0.9).sum()) + 1
    assert 1 < kept < 6 and (share <= 0.5).sum() + 1 < kept
    kmeans, _ = divergence.load_sklearn()
    cells = kmeans(6, n_init=5, max_iter=500, random_state=seed).fit_predict(centred @ axes[:kept].T)
    p, q = ([(list(part).count(k) + 0.5) / (60 + 6 / 2) for k in range(6)] for part in (cells[:60], cells[60:]))
    points = [(0.0, 1.0)]
    for i in reversed(range(25)):
        r = [i / 24 * a + (1 - i / 24) * b for a, b in zip(p, q, strict=True)]
        points.append(
            tuple(math.exp(-5 * sum(a * math.log(a / m) for a, m in zip(of, r, strict=True))) for of in (q, p))
        )
    points.append((1.0, 0.0))
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))
    assert mauve_like(one, two, seed=seed) == pytest.approx(area, rel=1e-9)


def test_it_falls_as_more_texts_are_of_another_kind() -> None:
    real, good, bad = features(200, 0.0, 0), features(200, 0.0, 1), features(200, 5.0, 2)
    values = [mauve_like(np.concatenate([good[: 200 - k], bad[:k]]), real) for k in (0, 50, 100, 150, 200)]
    assert all(later < earlier - 0.02 for earlier, later in itertools.pairwise(values)), values


def test_it_is_a_function_of_directions_alone() -> None:
    real, other = features(100, 0.0, 0), features(100, 0.5, 1)
    longer = other * np.random.default_rng(0).uniform(0.1, 10, (100, 1))
    assert mauve_like(longer, real) == pytest.approx(mauve_like(other, real), abs=1e-9)


def test_texts_that_come_many_times(recwarn: pytest.WarningsRecorder) -> None:
    one, two = np.ones((30, 4)), np.ones((30, 4))
    assert mauve_like(one, two) == 1.0
    two[:] = [1, 0, 0, 0]
    assert mauve_like(one, two) < 0.1
    assert mauve_like(one, two, clusters=20) < 0.1
    assert mauve_like(np.zeros((30, 4)), one) < 0.1  # texts without a token have features of zero
    assert not recwarn


def test_a_few_texts_have_no_distance() -> None:
    """Those of one cluster would be a perfect 1: there is no value before two clusters hold ten texts each."""
    for few, many in ((1, 1), (1, 200), (19, 200)):
        assert math.isnan(mauve_like(features(few, 0.0, 1), features(many, 5.0, 2)))
        assert math.isnan(mauve_like(features(many, 5.0, 2), features(few, 0.0, 1)))
    assert mauve_like(features(20, 0.0, 1), features(20, 5.0, 2)) < 0.1


def test_the_frontier_area_equals_a_fine_integral() -> None:
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5])
    assert frontier_area(p, p) == pytest.approx(1.0)
    assert frontier_area(p, q) == pytest.approx(frontier_area(q, p))
    w = np.linspace(0, 1, 20001)[:, None]
    r = w * p + (1 - w) * q
    x, y = (np.exp(-5 * (a * np.log(a / r)).sum(1)) for a in (q, p))
    exact = x[-1] + np.trapezoid(y[::-1], x[::-1])  # to the left of the frontier the height is 1
    assert frontier_area(p, q) == pytest.approx(exact, abs=0.01)


def test_histograms_have_no_empty_cell() -> None:
    h = histogram(np.array([0, 0, 2]), 4)
    assert h == pytest.approx(np.array([2.5, 0.5, 1.5, 0.5]) / 5)


def test_features_that_are_none() -> None:
    good = np.ones((3, 4))
    for bad in (np.ones((0, 4)), np.ones(4), np.full((3, 4), np.nan)):
        with pytest.raises(ValueError, match="generated: features of shape"):
            mauve_like(bad, good)
        with pytest.raises(ValueError, match="reference: features of shape"):
            mauve_like(good, bad)


@pytest.mark.parametrize(
    "library, use",
    [("sacrebleu", lambda: self_bleu(["a", "b"])), ("sklearn", divergence.load_sklearn)],
    ids=["sacrebleu", "sklearn"],
)
def test_a_library_that_is_missing(library: str, use: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any, **options: Any) -> Any:
        if name.split(".")[0] == library:
            raise ImportError(name)
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match=r"is not installed; pip install 'hybrid\[quality\]'"):
        use()
