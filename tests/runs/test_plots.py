"""Plots: what their pixels say, and what cannot be drawn."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from hybrid.results.plot import rasterise
from hybrid.runs.plots import plot_attention, plot_losses_by_count


@pytest.mark.parametrize("length", [1, 5, 16, 64])
def test_every_cell_of_an_attention_pattern_has_its_pixels(length):
    rng = np.random.default_rng(length)
    mask = rng.random((2 * length, 2 * length)) < 0.5
    image = plot_attention(mask, "random", {"clean": length, "noisy": length})
    cell = max(2, 256 // (2 * length))
    assert image.dtype == np.uint8
    corner = _corner(image, cell * 2 * length)
    centres = image[corner[0] + cell // 2 :: cell, corner[1] + cell // 2 :: cell][: 2 * length, : 2 * length]
    paper = np.abs(centres.astype(int) - 244).max(axis=-1) < 4
    # Where a cell has two pixels, the frame and the line between the streams take one of those beside them.
    clear = np.ones(2 * length, bool)
    clear[[0, length - 1, length, -1]] = cell > 2
    assert (paper == ~mask)[np.ix_(clear, clear)].all()
    mask &= clear[:, None] & clear
    quarters = [image_of_stream[mask_of_stream] for image_of_stream, mask_of_stream in _quarters(centres, mask, length)]
    colours = [{tuple(pixel) for pixel in quarter} for quarter in quarters if len(quarter)]
    assert all(len(colour) == 1 for colour in colours)
    assert len(set.union(*colours)) == len(colours)


def _corner(image: np.ndarray, size: int) -> tuple[int, int]:
    """Where the cells begin: after the margins that the figure was given."""
    height, _ = image.shape[:2]
    return height - size - 34, 56


def _quarters(image, mask, length):
    for rows in (slice(0, length), slice(length, None)):
        for columns in (slice(0, length), slice(length, None)):
            yield image[rows, columns], mask[rows, columns]


def test_figures_leave_no_global_state_and_reject_what_they_cannot_draw():
    from matplotlib.figure import Figure

    before = "matplotlib.pyplot" in sys.modules
    assert plot_losses_by_count({1: 0.5, 2: 1.0, 8: 2.0}, "loss", chance=5.5).shape == (240, 320, 3)
    assert rasterise(Figure(figsize=(1, 2), dpi=50)).shape == (100, 50, 3)
    assert plot_attention(np.ones((5, 5), bool), "one stream", {"clean": 0, "noisy": 5}, 2).ndim == 3
    assert plot_attention(np.ones((5, 5), bool), "unequal", {"clean": 2, "noisy": 3}, 2).ndim == 3
    assert ("matplotlib.pyplot" in sys.modules) == before
    for shape, streams in (((4,), {"a": 4}), ((0, 0), {}), ((3, 4), {"a": 4}), ((4, 4), {"a": 2, "b": 3})):
        with pytest.raises(ValueError, match="mask: shape"):
            plot_attention(np.ones(shape, bool), "bad", streams)
