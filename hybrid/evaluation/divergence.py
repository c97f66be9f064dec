"""Measure how far generated text is from real text, as a distribution: one number from features of both, as MAUVE does.

    features -> unit length -> PCA -> k-means over both sets -> smoothed histograms -> divergence frontier -> area

Pillutla et al. 2021 ('MAUVE', section 2), with the smoothing of their follow-up (2212.14578). It is MAUVE-like:
published values have features of GPT-2 large and thousands of texts. Values with other features, numbers of texts or
lengths compare neither with them nor with each other. With few texts the histograms are coarse: look at the value that
a second sample of real text gets. With fewer than `LEAST` there is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hybrid.evaluation.base import Column, EvaluationModel, Metric, Texts
from hybrid.options import option

SCALE = 5.0
"""c of exp(-c KL), as published."""

POINTS = 25
"""Mixture weights on the frontier."""

LEAST = 20
"""Texts of each set. A cluster for ten texts, as published, is two clusters from here on, and with one there is nothing
to compare: below, two texts that fall into one cluster would be a perfect 1, whatever they say."""

VARIANCE = 0.9
"""Share of the variance that the PCA keeps."""


@dataclass(frozen=True)
class MauveLike(Metric):
    """`mauve_like` of the features that the evaluation model takes; needs scikit-learn."""

    columns: ClassVar[tuple[Column, ...]] = (Column("MAUVE*", "mauve_like", ".3f"),)
    needs_evaluation_model: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True
    seed: int = option(0, "seed of k-means")
    clusters: int | None = option(None, "cells of the histograms; null: a tenth of the smaller set")

    def check(self) -> None:
        load_sklearn()

    def measure(self, texts: Texts, reference: Texts) -> dict[str, float]:
        assert texts.reading is not None and reference.reading is not None
        value = mauve_like(texts.reading.features, reference.reading.features, self.seed, self.clusters)
        return {"mauve_like": value}

    def notes(self, numbers: Sequence[Mapping[str, float]], model: EvaluationModel | None) -> list[str]:
        found = ["MAUVE*: like MAUVE, on the judge's features; compare within this table only"]
        if any(math.isnan(of_line.get("mauve_like", 0.0)) for of_line in numbers):
            found.append(f"MAUVE* needs {LEAST} texts, and as many of real text: no value (-) without them")
        return found


def mauve_like(generated: np.ndarray, reference: np.ndarray, seed: int = 0, clusters: int | None = None) -> float:
    """Area under the divergence frontier of two sets of features, in (0, 1]; 1 where their histograms are the same.

    NaN if one of them has fewer than `LEAST` texts.

    Args:
        generated, reference: float (texts, dim).
        seed: of k-means, the best of 5 starts; a few texts can change cluster with it.
        clusters: cells of the histograms; default: a tenth of the smaller set.

    Raises:
        ValueError: a set of no text or of values that are not finite, or scikit-learn is not installed.
    """
    for name, features in (("generated", generated), ("reference", reference)):
        if features.ndim != 2 or not len(features) or not np.isfinite(features).all():
            raise ValueError(f"{name}: features of shape {features.shape} must be finite, [texts > 0, dim]")
    n, smaller = len(generated), min(len(generated), len(reference))
    if smaller < LEAST:
        return math.nan
    joint = np.concatenate([generated, reference]).astype(np.float64)
    cells = _quantise(joint, clusters or round(smaller / 10), seed)
    size = int(cells.max()) + 1
    return frontier_area(histogram(cells[:n], size), histogram(cells[n:], size))


def load_sklearn() -> tuple[Any, Any]:
    """Import the classes KMeans and PCA. Raises a ValueError if scikit-learn is not installed."""
    try:
        from sklearn.cluster import KMeans
        from sklearn.decomposition import PCA
    except ImportError:
        raise ValueError("MAUVE-like: scikit-learn is not installed; pip install 'hybrid[quality]'") from None
    return KMeans, PCA


def _quantise(joint: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """(texts, dim) -> the cluster of each text, int (texts,)."""
    kmeans, pca = load_sklearn()
    norms = np.linalg.norm(joint, axis=1, keepdims=True)
    unit = joint / np.where(norms > 0, norms, 1)
    # A text that comes several times is one point; k-means warns if it gets fewer points than clusters.
    clusters = min(clusters, len(np.unique(unit, axis=0)))
    if clusters < 2:
        return np.zeros(len(joint), dtype=np.int64)
    reduced = pca(n_components=VARIANCE, svd_solver="full").fit_transform(unit)
    return kmeans(clusters, n_init=5, max_iter=500, random_state=seed).fit_predict(reduced)


def histogram(cells: np.ndarray, size: int) -> np.ndarray:
    """(size,) shares with half a count added to every cell (Krichevsky-Trofimov), so that none is zero."""
    counts = np.bincount(cells, minlength=size) + 0.5
    return counts / counts.sum()


def frontier_area(p: np.ndarray, q: np.ndarray) -> float:
    """Area under the points (exp(-c KL(q | r)), exp(-c KL(p | r))), r = w p + (1 - w) q, for w from 0 to 1.

    The frontier is closed by (0, 1) and (1, 0). Symmetric in p and q, which must be positive.
    """
    weights = np.linspace(0, 1, POINTS)[:, None]
    mixture = weights * p + (1 - weights) * q  # (points, cells)
    x = np.exp(-SCALE * (q * np.log(q / mixture)).sum(1))
    y = np.exp(-SCALE * (p * np.log(p / mixture)).sum(1))
    # With w the mixture goes from q (x = 1) to p (y = 1), so x falls: turned round, it starts at the corner (0, 1).
    x, y = np.concatenate([[0.0], x[::-1], [1.0]]), np.concatenate([[1.0], y[::-1], [0.0]])
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum())
