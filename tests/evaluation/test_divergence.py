"""The MAUVE-like divergence between two sets of features."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from hybrid.evaluation import divergence
from hybrid.evaluation.divergence import frontier_area, histogram, mauve_like


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
