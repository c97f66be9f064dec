"""Draw plots with matplotlib's object interface: no pyplot, so no global state and no display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from hybrid.results.plot import rasterise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAPER = (0.955, 0.955, 0.955)
# One hue for each pair (query stream, key stream): clean-clean, clean-noisy, noisy-clean, noisy-noisy.
_HUES = np.array([(0.12, 0.35, 0.62), (0.80, 0.15, 0.20), (0.42, 0.68, 0.84), (0.93, 0.55, 0.14)])


def plot_attention(
    mask: np.ndarray, title: str, streams: Mapping[str, int], block_size: int | None = None
) -> np.ndarray:
    """Draw who may attend to whom: `mask` is bool [rows, rows]; its rows are the `streams` (name -> length) in turn.

    Each cell is a whole number of pixels, so that nothing blurs; grey lines separate blocks and black ones streams.
    Returns an image, uint8 [height, width, 3].

    Raises:
        ValueError: the mask is not square, or the streams do not make up its rows.
    """
    from matplotlib.figure import Figure

    mask = np.asarray(mask, dtype=bool)
    streams = {name: length for name, length in streams.items() if length}
    n = sum(streams.values())
    if mask.shape != (n, n) or n == 0:
        raise ValueError(f"mask: shape {mask.shape} is not [rows, rows] of the streams {streams}")
    # About the size at which TensorBoard shows images: larger ones it shrinks by leaving out pixels.
    cell = max(2, 256 // n)
    left, bottom, right, top = 56, 34, 8, 24
    width, height = max(n * cell + left + right, left + 6 * len(title)), n * cell + bottom + top
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    axes = figure.add_axes((left / width, bottom / height, n * cell / width, n * cell / height))
    axes.imshow(_colours(mask, list(streams.values())), interpolation="nearest", aspect="auto", extent=(0, n, n, 0))
    axes.set_title(title, fontsize=7, loc="left")
    starts = np.concatenate([[0], np.cumsum(list(streams.values()))])
    for axis, line in ((axes.xaxis, axes.axvline), (axes.yaxis, axes.axhline)):
        for start, stop in pairwise(starts):
            step = block_size if block_size and block_size * cell >= 6 else stop - start  # no lines that hide the cells
            for position in range(start, stop, step):
                line(position, color="black" if position == start else "0.65", linewidth=0.72, snap=True)
        axis.set_ticks(list((starts[:-1] + starts[1:]) / 2), list(streams))
        axis.set_tick_params(length=0, labelsize=7)
    axes.set_xlabel("key", fontsize=7)
    axes.set_ylabel("query", fontsize=7)
    return rasterise(figure)


def _colours(mask: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    stream = np.repeat(np.arange(len(lengths)), lengths)
    hues = _HUES[(stream[:, None] * len(lengths) + stream[None, :]) % len(_HUES)]
    return np.where(mask[..., None], hues, _PAPER)


def plot_losses_by_count(losses: Mapping[int, float], title: str, chance: float | None = None) -> np.ndarray:
    """Draw the cross-entropy of a masked token against the number of masked tokens in its block.

    `chance` (the loss of a guess, say log of the vocabulary) is a dotted line. Returns uint8 [height, width, 3].
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(3.2, 2.4), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    counts = sorted(losses)
    axes.plot(counts, [losses[count] for count in counts], marker="o", markersize=3, color=_HUES[0])
    if chance is not None:
        axes.axhline(chance, color="0.5", linestyle=":", linewidth=1)
        axes.annotate("a uniform guess", (0, chance), (3, -8), xycoords=("axes fraction", "data"),
                      textcoords="offset points", fontsize=7, color="0.35")  # fmt: skip
    axes.set_xlabel("masked tokens in the block", fontsize=8)
    axes.set_ylabel("nats per masked token", fontsize=8)
    axes.set_title(title, fontsize=8, loc="left")
    axes.tick_params(labelsize=7)
    axes.set_xlim(0, counts[-1] + 1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
    axes.grid(alpha=0.3)
    return rasterise(figure)


def plot_unmasking_order(
    revealed: Sequence[tuple[int, int, float]], remasked: Sequence[tuple[int, int]], block_size: int, title: str
) -> Figure:
    """Draw at which forward each position of a text was revealed, and at which it was taken back (a cross).

    Args:
        revealed: position, forward and probability of each token, at least one.
        remasked: position and forward of each that became MASK again.
    """
    from matplotlib.figure import Figure

    positions, forwards, probabilities = zip(*revealed, strict=True)
    figure = Figure(figsize=(4.8, 3.2), dpi=100)
    axes = figure.add_axes((0.1, 0.13, 0.74, 0.79))
    shown = axes.scatter(positions, forwards, c=probabilities, s=14, marker="s", cmap="cividis", vmin=0, vmax=1)
    if remasked:
        axes.scatter(*zip(*remasked, strict=True), s=20, marker="x", color=_HUES[1], linewidth=0.9, label="taken back")
        axes.legend(fontsize=7, loc="upper left")
    first, last = min(positions) // block_size, max(positions) // block_size
    for block in range(first, last + 2):
        axes.axvline(block * block_size - 0.5, color="0.7", linewidth=0.6, zorder=0)
    bar = figure.colorbar(shown, cax=figure.add_axes((0.86, 0.13, 0.03, 0.79)))
    bar.set_label("probability of the token", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    axes.set_xlabel("position", fontsize=8)
    axes.set_ylabel("forward", fontsize=8)
    axes.set_title(title, fontsize=8, loc="left")
    axes.tick_params(labelsize=7)
    return figure
