"""The sections of a report: what is said, drawn and tabulated, whatever the format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hybrid.options import title
from hybrid.report import plots
from hybrid.report.generated import REPETITIVE, Written, front, written
from hybrid.report.groups import Group, common, differences
from hybrid.report.run_record import RunRecord
from hybrid.results.environment import commit_of, machine_of
from hybrid.results.publish import listed
from hybrid.results.table import Table, column
from hybrid.results.text import formatted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Section:
    """`plots` maps the stem of a file to what it shows and the figure; `samples` maps a group to a text."""

    title: str
    text: str
    plots: dict[str, tuple[str, Figure]] = field(default_factory=dict)
    table: Table | None = None
    samples: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)  # that all runs share


def sections(groups: Sequence[Group]) -> list[Section]:
    """Make the sections for which the runs have something to show."""
    runs = [run for g in groups for run in g.runs]
    palette = plots.colours(groups)
    texts = written(groups)
    found = [
        _block_sizes(groups, runs),
        _trade(texts, runs, palette),
        _by_count(groups, palette),
        _curves(groups, palette),
        _samples(groups),
        _runs(groups, runs),
    ]
    return [section for section in found if section is not None]


def truth_in_bits(runs: Sequence[RunRecord]) -> tuple[float, float] | None:
    """Convert `RunRecord.truth` to bits per byte, if it is known and the same for all runs."""
    known = {run.truth for run in runs}
    values = known.pop() if len(known) == 1 else None
    if values is None:
        return None
    factor = runs[0].likelihoods[0].bits_per_nat
    if factor is None:
        return None
    return values[0] * factor, values[1] * factor


@dataclass(frozen=True)
class LikelihoodRow:
    """One model at one block size."""

    model: str = column("model")
    block_size: int = column("block size")
    trained: str = column("trained for it")
    likelihood: str = column("likelihood")
    nats: str = column("nats per token")
    bits: str | None = column("bits per byte")
    excess: float | None = column("above the source", "+.4f", optional=True)  # bits per byte
    seeds: int = column("seeds")


def _block_sizes(groups: Sequence[Group], runs: Sequence[RunRecord]) -> Section | None:
    truth = truth_in_bits(runs)
    if not any(g.evaluated for g in groups):
        return None
    figure = plots.block_sizes([g for g in groups if g.has_bits], truth)
    drawn = {} if figure is None else {"block_size": ("bits per byte against block size", figure)}
    rows = []
    for g in groups:
        for size in g.evaluated:
            method = g.method(size)
            sign = "≤" if method == "bound" else "="
            nats, bits = g.nats(size), g.bits_per_byte(size)
            row = LikelihoodRow(
                g.label, size, _trained(g, size), method,
                nats=f"{sign} {nats.text(4)}",
                bits=None if bits is None else f"{sign} {bits.text(4)}",
                excess=None if bits is None or truth is None else bits.value - truth[1],
                seeds=len(g.runs),
            )  # fmt: skip
            rows.append(row)
    text = (
        "Squares are exact likelihoods, discs are bounds: the likelihood itself is better than a bound, by an amount "
        "that is not known. ± is the standard error over seeds, or of the noise of the masks with one seed. "
        f"Evaluated: {'; '.join(sorted({run.how_evaluated for run in runs}))}."
    )
    if truth is not None:
        text += (
            f" The entropy of the source is {truth[0]:.4f} bits per byte, in closed form; the source itself gives the "
            f"validation text {truth[1]:.4f}, which no model beats but by chance. {_below(groups, truth[1])}"
        )
        if not all(run.is_evaluated_whole for run in runs):
            text += " Models were evaluated on a part of that text only, which may be easier or harder."
    return Section("Bits per byte", text, drawn, Table(rows))


def _trained(group: Group, block_size: int) -> str:
    if block_size not in group.first.block_sizes:
        return "no"
    return "alone" if len(group.first.block_sizes) == 1 else "among others"


def _below(groups: Sequence[Group], truth: float) -> str:
    """Say which likelihoods are better than that of the source itself."""
    low = []
    for g in groups:
        for size in g.evaluated:
            mean = g.bits_per_byte(size)
            if mean is not None and mean.value < truth:
                low.append(f"{g.label} at block size {size} ({mean.value - truth:+.4f})")
    if not low:
        return "Every likelihood lies above that."
    return f"BELOW that, by chance or by mistake: {', '.join(low)}."


@dataclass(frozen=True)
class TradeRow:
    """The texts of one model by one decoder."""

    model: str = column("model")
    block_size: int = column("block size")
    decoder: str = column("decoder")
    tokens_per_second: float = column("tokens/s", round)
    nfe_per_token: float = column("forwards per token", ".3f")
    entropy: float = column("entropy", ".3f")
    nats_per_byte: float | None = column("judge, nats/byte", ".3f")
    others: Mapping[str, str] = column("{}")
    remark: str = column("")


def _trade(texts: Sequence[Written], runs: Sequence[RunRecord], palette: dict[str, Any]) -> Section | None:
    if not texts:
        return None
    figure = plots.trade(texts, palette)
    best = {id(w) for w in front(texts)}
    rows = [
        TradeRow(
            w.group, w.block_size, w.decoder, w.tokens_per_second, w.nfe_per_token, w.entropy, w.nats_per_byte,
            w.others, "repeats itself" if w.is_repetitive else "front" if id(w) in best else "",
        )
        for w in texts
    ]  # fmt: skip
    evaluated = [run.evaluation for run in runs if run.evaluation is not None and run.generated]
    hows = [e.how_generated for e in evaluated]
    ways = [
        f"{formatted(h['samples'], 'g')} texts at once, temperature {formatted(h['temperature'], 'g')}" for h in hows
    ]
    model = evaluated[0].evaluation_model
    real = texts[0]
    text = f"From each model and decoder {' or '.join(dict.fromkeys(ways))}."
    if model is not None and real.real_nats_per_byte is not None:
        text += (
            f" The judge {model['name']} finds {real.real_nats_per_byte:.3f} nats per byte in real text (entropy "
            f"{real.real_entropy:.3f}); lower is more probable to it, and what repeats itself is the most probable: "
            f"texts with less than {REPETITIVE:.0%} of the entropy of real ones are hollow and not on the front. "
            "The line joins those that no other beats in both speed and quality."
        )
    machines = {e.machine for e in evaluated}
    text += f" Speeds are those of {', '.join(sorted(machines))}."
    drawn = {} if figure is None else {"trade": ("quality against tokens per second", figure)}
    return Section("Quality against speed", text, drawn, Table(rows))


def _by_count(groups: Sequence[Group], palette: dict[str, Any]) -> Section | None:
    figure = plots.by_count(groups, palette)
    if figure is None:
        return None
    text = (
        "How hard a masked token is to predict, by how many of its block are masked. The bound is the mean of these "
        "values over the counts 1, 2, ..., block size; of long blocks a dot is a range of counts."
    )
    return Section("Loss by number of masked tokens", text, {"by_count": ("loss by count", figure)})


def _curves(groups: Sequence[Group], palette: dict[str, Any]) -> Section | None:
    drawn = {}
    for against, caption in (("tokens", "loss against tokens"), ("seconds", "loss against time")):
        figure = plots.curves(groups, palette, against)
        if figure is not None:
            drawn[f"curve_{against}"] = (caption, figure)
    text = (
        f"Dots: validation. Thin lines: training, a mean over {plots.SMOOTHING} logged values. Times are comparable "
        "only if nothing else ran on the machine."
    )
    return Section("Training", text, drawn) if drawn else None


def _samples(groups: Sequence[Group]) -> Section | None:
    texts = {g.label: g.first.sample for g in groups if g.first.sample}
    seed = "the first seed of each" if any(len(g.runs) > 1 for g in groups) else "each"
    text = f"The last texts that {seed} wrote during training, with its own decoder, each behind its prompt (---)."
    return Section("Samples", text, samples=texts) if texts else None


@dataclass(frozen=True)
class ModelRow:
    """One model: means over its seeds."""

    model: str = column("model")
    settings: dict[str, Any] = column("{}")  # in which models differ
    parameters: int = column("parameters")
    tokens: float = column("tokens", ",.0f")
    minutes: float = column("minutes", ".1f")
    bits: str | None = column("bits per byte")
    seeds: int = column("seeds")


def _runs(groups: Sequence[Group], runs: Sequence[RunRecord]) -> Section:
    differ = differences(runs)
    rows = []
    for g in groups:
        own = g.own or (g.evaluated[0] if g.evaluated else None)
        bits = None if own is None else g.bits_per_byte(own)
        row = ModelRow(
            g.label,
            settings={key: g.settings[key] for key in differ},
            parameters=g.first.environment["parameters"],
            tokens=g.over_runs(lambda run: run.tokens(run.step)).value,
            minutes=g.over_runs(lambda run: run.seconds / 60).value,
            bits=None if own is None or bits is None else f"{bits.text(4)} ({g.method(own)})",
            seeds=len(g.runs),
        )
        rows.append(row)
    text = "Only the settings in which they differ."
    return Section("Models", text, table=Table(rows), settings=common(runs))


def provenance(runs: Sequence[RunRecord]) -> list[str]:
    """Say where the runs come from."""
    environments = [run.environment for run in runs]
    commits, machines = (sorted(set(map(of, environments))) for of in (commit_of, machine_of))
    corpora = {title(run.config.data.corpus) for run in runs}
    tokenizers = {run.trained_on.tokenizer for run in runs}
    seeds = sorted({run.config.run.seed for run in runs})
    return [
        f"{len(runs)} runs on {', '.join(sorted(corpora))}, tokens: {', '.join(sorted(tokenizers))}; "
        f"{listed('seed', seeds)}.",
        f"Trained at {listed('commit', commits)}, on {'; '.join(machines)}.",
    ]
