"""Curves with error bars as an image: the plots of the experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_STYLES = ("o-", "s--", "^:", "D-.", "v-", "x--")
_INSIDE = 6  # curves, of which the legend finds room among them; that of more stands beside them


def rasterise(figure: Figure) -> np.ndarray:
    """Draw a figure into an image, uint8 [height, width, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


@dataclass(frozen=True)
class Panel:
    """`curves` maps a label to (x, y) or (x, y, error); `levels` are horizontal lines with their labels."""

    title: str
    x: str
    y: str
    curves: Mapping[str, Sequence[Sequence[float]]]
    levels: Mapping[str, float]
    log_y: bool = False


def curves(panels: Sequence[Panel]) -> np.ndarray:
    """Draw panels side by side, x on a logarithmic scale; uint8 [height, width, 3]."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import StrMethodFormatter

    is_crowded = any(len(panel.curves) > _INSIDE for panel in panels)
    width, height = (6.4, 4.6) if is_crowded else (4.2, 3.2)
    figure = Figure(figsize=(width * len(panels), height), dpi=110, layout="constrained")
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        axes.set_prop_cycle(color=colormaps["tab20" if is_crowded else "tab10"](range(20 if is_crowded else 10)))
        for style, (label, curve) in zip(cycle(_STYLES), panel.curves.items(), strict=False):
            error = curve[2] if len(curve) > 2 else None
            axes.errorbar(
                curve[0], curve[1], error, fmt=style, label=label, markersize=4, linewidth=1.2, capsize=2, alpha=0.85
            )
        for label, level in panel.levels.items():
            axes.axhline(level, color="0.35", linewidth=1, linestyle=(0, (1, 1)))
            axes.annotate(label, (0, level), (3, -8), xycoords=("axes fraction", "data"), textcoords="offset points",
                          fontsize=7, color="0.35")  # fmt: skip
        axes.set_xscale("log", base=4)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.4g}"))
        if panel.log_y:
            axes.set_yscale("log")
        axes.set_xlabel(panel.x, fontsize=8)
        axes.set_ylabel(panel.y, fontsize=8)
        axes.set_title(panel.title, fontsize=8, loc="left")
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        if is_crowded:
            axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.3, frameon=False)
        elif panel.curves:
            axes.legend(fontsize=7)
    return rasterise(figure)
