"""The plots of a report.

Exact likelihoods are squares, bounds are discs; bars are standard errors over seeds, or of the noise with one seed.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid.report.generated import Written, front
from hybrid.report.groups import Group, Mean
from hybrid.report.run_record import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart; without black (autoregressive) and yellow (pale).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_AUTOREGRESSIVE, _GUIDE, _TRUTH = "black", "0.4", "#B00020"
_TRUTHS = (("entropy of the source", ":"), ("the source, on this text", "-."))
_MARKERS = {"exact": "s", "bound": "o"}
_DECODER_MARKERS = "oD^vPX<>*h"
SMOOTHING = 5  # logged values of the training loss that are averaged


def save_svg(figure: Figure, name: str) -> str:
    """Write a figure as an element of a page. The name keeps the identifiers of several on one page apart."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "hybrid"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg[svg.index("<svg") :])


def save_png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150)
    return data.getvalue()


def colours(groups: Sequence[Group]) -> dict[str, Any]:
    """Choose black for autoregressive groups; a scale over block sizes if these tell all others apart, else hues."""
    from matplotlib import colormaps

    found: dict[str, Any] = {g.label: _AUTOREGRESSIVE for g in groups}
    others = [g for g in groups if not g.is_autoregressive]
    single = [g for g in others if len(g.first.block_sizes) == 1]
    if len({g.first.block_sizes[0] for g in single}) == len(single) > 1:
        scale = colormaps["viridis"](np.linspace(0, 0.8, len(single)))  # the rest is pale on white
        found |= {g.label: colour for g, colour in zip(single, scale, strict=True)}
        others = [g for g in others if g not in single]
    hues = _COLOURS if len(others) <= len(_COLOURS) else colormaps["turbo"](np.linspace(0.05, 0.95, len(others)))
    return found | {g.label: hue for g, hue in zip(others, hues, strict=False)}


def block_sizes(groups: Sequence[Group], truth: tuple[float, float] | None) -> Figure | None:
    """Plot bits per byte, which all groups have, against the block size.

    One curve joins the models that were each trained for one size; each model that was evaluated at several has one.

    Args:
        truth: the entropy of the source and its own likelihood, bits per byte.
    """
    if len({size for g in groups if not g.is_autoregressive for size in g.evaluated}) < 2:
        return _side_by_side(groups, truth)
    figure, axes = _new("block size at evaluation", "bits per byte")
    families: dict[Any, list[Group]] = {}
    for g in groups:
        if g.own is not None and not g.is_autoregressive:
            families.setdefault(g.family, []).append(g)
    for i, (family, members) in enumerate(families.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        label = "each trained for its block size" if len(families) == 1 else _family_name(family, members, groups)
        _over_block_sizes(axes, [(g, g.own) for g in members], colour, "-", label)
    several = [g for g in groups if len(g.evaluated) > 1 and not g.is_autoregressive]
    for i, g in enumerate(several):
        of_one = f"{g.label}, at other block sizes" if g.own is not None else g.label
        colour = _COLOURS[(i + len(families)) % len(_COLOURS)]
        _over_block_sizes(axes, [(g, size) for size in g.evaluated], colour, "--", of_one)
    for g in (g for g in groups if g.is_autoregressive and g.own is not None):
        mean = _bits(g, 1)
        axes.axhline(mean.value, color=_AUTOREGRESSIVE, linestyle="--", linewidth=1.2, label=f"{g.label} (exact)")
        if mean.error:
            axes.axhspan(mean.value - mean.error, mean.value + mean.error, color="0.85", zorder=0)
    for value, (label, line) in zip(truth or (), _TRUTHS, strict=False):
        axes.axhline(value, color=_TRUTH, linestyle=line, linewidth=1.2, label=label)
    ticks = sorted({size for g in groups for size in ([g.own] if g.own else []) + g.evaluated})
    _sizes_axis(axes, ticks)
    _marker_legend(axes, {g.method(size) for g in groups for size in g.evaluated})
    return figure


def _side_by_side(groups: Sequence[Group], truth: tuple[float, float] | None) -> Figure | None:
    """Plot bits per byte of models that were evaluated at one block size, a line each."""
    lines = [(g, size) for g in groups for size in g.evaluated][::-1]
    if not lines:
        return None
    figure, axes = _new("bits per byte", "", height=1.3 + 0.28 * len(lines))
    for y, (g, size) in enumerate(lines):
        mean, colour = _bits(g, size), _AUTOREGRESSIVE if g.is_autoregressive else _COLOURS[0]
        axes.errorbar(mean.value, y, xerr=mean.error or None, fmt=_MARKERS[g.method(size)], color=colour, capsize=2.5)
    axes.set_yticks(range(len(lines)), [g.label for g, _ in lines])
    for value, (label, line) in zip(truth or (), _TRUTHS, strict=False):
        axes.axvline(value, color=_TRUTH, linestyle=line, linewidth=1.2, label=label)
    _marker_legend(axes, {g.method(size) for g, size in lines})
    return figure


def _bits(group: Group, block_size: int) -> Mean:
    mean = group.bits_per_byte(block_size)
    assert mean is not None, f"{group.label} has no bits per byte"
    return mean


def _over_block_sizes(
    axes: Axes, points: Sequence[tuple[Group, int | None]], colour: Any, line: str, label: str
) -> None:
    placed = sorted((size, _bits(g, size), g.method(size)) for g, size in points if size is not None)
    axes.plot([size for size, _, _ in placed], [m.value for _, m, _ in placed], line, color=colour, label=label)
    for size, mean, method in placed:
        axes.errorbar(
            size, mean.value, mean.error or None, fmt=_MARKERS[method], color=colour, markersize=5, capsize=2.5
        )


def _family_name(family: Any, members: Sequence[Group], groups: Sequence[Group]) -> str:
    """Name the settings in which it differs from the other families."""
    if len(members) == 1:
        return members[0].label
    others = [dict(g.family) for g in groups if g.family != family]
    own = {k: v for k, v in family if any(other.get(k) != v for other in others)}
    return ", ".join(f"{k.rpartition('.')[2]} {v}" for k, v in own.items()) or members[0].label


def trade(written: Sequence[Written], palette: dict[str, Any]) -> Figure | None:
    """Plot quality against speed over groups and decoders, with the front of those that no other beats in both."""
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    points = [(w, w.nats_per_byte) for w in written if w.nats_per_byte is not None]
    if not points:
        return None
    figure, axes = _new("tokens per second", "judge: nats per byte of text")
    decoders = list(dict.fromkeys(w.decoder for w, _ in points))
    for w, nats in points:
        marker = _DECODER_MARKERS[decoders.index(w.decoder) % len(_DECODER_MARKERS)]
        colour = palette[w.group]
        face = "none" if w.is_repetitive else colour
        axes.plot(w.tokens_per_second, nats, marker, color=colour, markerfacecolor=face, markersize=6)
    best = [(w.tokens_per_second, w.nats_per_byte or 0.0) for w in front(written)]
    axes.plot([x for x, _ in best], [y for _, y in best], "-", color=_GUIDE, linewidth=1, zorder=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.minorticks_off()
    real = next((w.real_nats_per_byte for w, _ in points if w.real_nats_per_byte is not None), None)
    if real is not None:
        axes.axhline(real, color=_GUIDE, linestyle=":", linewidth=1)
        axes.annotate("real text", (1, real), (-3, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                      ha="right", fontsize=7, color=_GUIDE)  # fmt: skip
    for group in dict.fromkeys(w.group for w, _ in points):
        axes.plot([], [], "s", color=palette[group], label=group)
    for i, name in enumerate(decoders):
        axes.plot([], [], _DECODER_MARKERS[i % len(_DECODER_MARKERS)], color=_GUIDE, label=name)
    if any(w.is_repetitive for w, _ in points):
        axes.plot([], [], "o", color=_GUIDE, markerfacecolor="none", label="hollow: repeats itself")
    _legend(axes)
    return figure


def by_count(groups: Sequence[Group], palette: dict[str, Any]) -> Figure | None:
    """Plot the loss of a masked token against the number that are masked in its block, at the model's block size."""
    figure, axes = _new("masked tokens in the block", "nats per masked token")
    drawn = False
    for g in groups:
        size = g.own or max(g.evaluated, default=0)
        losses = g.by_count(size) if size > 1 else {}
        if losses:
            drawn = True
            axes.plot(list(losses), list(losses.values()), "o-", color=palette[g.label], markersize=3, label=g.label)
    if not drawn:
        return None
    _sizes_axis(axes, [2**k for k in range(10) if 2**k <= axes.get_xlim()[1]])
    _legend(axes)
    return figure


def curves(groups: Sequence[Group], palette: dict[str, Any], against: str) -> Figure | None:
    """Plot training loss (thin, a running mean over all seeds) and validation (dots) against "tokens" or "seconds"."""
    label = {"tokens": "training tokens", "seconds": "seconds of training"}[against]
    figure, axes = _new(label, "nats per token")
    values: list[float] = []
    for g in groups:
        trained = _mean_curve(g.runs, "train/nelbo", against)
        validated = _mean_curve(g.runs, "val/nelbo", against)
        if len(trained):
            kernel = min(SMOOTHING, len(trained))
            smooth = np.stack([np.convolve(column, np.ones(kernel) / kernel, mode="valid") for column in trained.T])
            axes.plot(*smooth, color=palette[g.label], linewidth=0.8, alpha=0.6)
            values += smooth[1].tolist()
        axes.plot(*validated.T, "o-", color=palette[g.label], markersize=3.5, linewidth=1.3, label=g.label)
        values += validated[:, 1].tolist()
    if not values:
        return None
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    # The first steps fall from log(vocabulary); what is compared is the rest.
    axes.set_ylim(min(values) - 0.03 * abs(min(values)), float(np.percentile(values, 92)))
    _legend(axes)
    return figure


def _mean_curve(runs: Sequence[RunRecord], tag: str, against: str) -> np.ndarray:
    """Average a metric over runs where all logged it: (points, 2) float64 of x and the mean."""
    tables = [{step: (run.tokens(step), seconds, value) for step, seconds, value in run.curve(tag)} for run in runs]
    steps = sorted(set.intersection(*(set(t) for t in tables)))
    column = 0 if against == "tokens" else 1
    rows = [[np.mean([t[step][column] for t in tables]), np.mean([t[step][2] for t in tables])] for step in steps]
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def _new(x: str, y: str, height: float = 3.9) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    return figure, axes


def _sizes_axis(axes: Axes, ticks: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(ticks), [str(tick) for tick in ticks])
    axes.minorticks_off()


def _marker_legend(axes: Axes, methods: set[str]) -> None:
    said = {"exact": "exact", "bound": "bound (the truth is lower)"}
    for method in sorted(methods):
        axes.plot([], [], _MARKERS[method], color=_GUIDE, markersize=5, label=said[method])
    _legend(axes)


def _legend(axes: Axes) -> None:
    if not axes.get_legend_handles_labels()[0]:
        return
    many = len(axes.get_legend_handles_labels()[0]) > 8
    axes.legend(fontsize=6.5 if many else 7.5, ncols=2 if many else 1, framealpha=0.8)
