"""Which objective trains best in the same time? Each is trained with several seeds and compared on the true ELBO.

    python -m hybrid.experiments.objectives --config configs/bytes.yaml trainer.steps=300
    python -m hybrid.experiments.objectives --config configs/bytes.yaml --only elbo maskgit --seeds 0 1 2 3

Every run has two noisy streams on a clean pass. The time of a step is measured for all objectives in turn, and each is
given as many steps as fit into the time of the first. Runs and timings that are there already are not repeated, so a
comparison can be interrupted, and extended; those of other settings, of another text or machine are refused.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid import cli
from hybrid.options import at_least, pick, title
from hybrid.results.table import Table, column, plus_minus

if TYPE_CHECKING:
    from hybrid.config import Config
    from hybrid.evaluation.base import EvaluationModel

log = logging.getLogger("hybrid.experiments.objectives")
COMMON = ["objective.draws=2"]
BASELINE = "elbo"
CONTENDERS: dict[str, list[str]] = {
    BASELINE: [],
    "elbo, complementary": ["objective.complementary=true"],
    "elbo, independent counts": ["objective.stratified=false"],
    "elbo, time form": ["objective.estimator=time"],
    "elbo, time form, independent": ["objective.estimator=time", "objective.stratified=false"],
    "clipped time [0.3, 0.8]": ["objective.estimator={name: clipped, low: 0.3, high: 0.8}"],
    "clipped time [0.5, 1]": ["objective.estimator={name: clipped, low: 0.5, high: 1.0}"],
    "uniform": ["objective.weighting=uniform"],
    "maskgit": ["objective.weighting=maskgit"],
    "cart": ["objective.weighting=cart"],
    "bert": ["objective.weighting=bert"],
    "elbo, next_token": ["model.prediction=next_token"],
    "elbo, causal context": ["model.context=causal"],
    "elbo + 0.5 autoregressive, causal": ["model.context=causal", "objective.ar_weight=0.5"],
}
TIMED_ROUNDS = 7


@dataclass(frozen=True)
class Outcome:
    """One run. Likelihoods in nats per token."""

    name: str
    seed: int
    steps: int
    seconds_per_step: float  # measured in turn with the others, before training
    nelbo: float
    at_one: float  # left to right: `exact`, or with an autoregressive loss what that trains, `causal`
    entropy: float
    gen_ppl: float | None


def main() -> int:
    arguments = parse()
    from hybrid.experiments.measuring.remembered import basis, remembered
    from hybrid.results.publish import publish, refuse_foreign

    refuse_foreign(arguments.output)
    names = arguments.only or list(CONTENDERS)
    plans = {name: [configure(arguments, name, seed) for seed in arguments.seeds] for name in names}
    firsts = {name: configs[0] for name, configs in plans.items()}
    made_from = {**basis(firsts[names[0]]), "first": names[0]}
    costs = remembered(Path(arguments.folder) / "costs.json", made_from, lambda kept: with_missing(kept, firsts))
    evaluation_model = _evaluation_model(arguments)
    outcomes = []
    for i in range(len(arguments.seeds)):  # seed by seed, so that what there is can be compared early
        for name, configs in plans.items():
            steps = fitting_steps(configs[i], costs[name], costs[names[0]])
            outcomes.append(outcome(configs[i], name, steps, costs[name], evaluation_model, arguments))
            log.info("%s, seed %d: %.4f", name, outcomes[-1].seed, outcomes[-1].nelbo)
    parts = [_explanation(plans[names[0]][0], arguments), table(outcomes)]
    module = "hybrid.experiments.objectives"
    publish(arguments.output, module, "Objectives at equal time", arguments.seeds, parts)
    return 0


def configure(arguments: argparse.Namespace, name: str, seed: int) -> Config:
    """Configure one run, its folder named after objective and seed."""
    from hybrid.config import load_config
    from hybrid.experiments.measuring.trained import settings
    from hybrid.sweep.plan import slug

    own = settings(arguments.folder, slug(name), seed)
    return load_config(arguments.config, [*arguments.overrides, *COMMON, *CONTENDERS[name], *own])


def with_missing(kept: dict[str, float], configs: dict[str, Config]) -> dict[str, float]:
    """Add to the kept times of a step those of objectives that have none, measured in turn with the first."""
    missing = {name: config for name, config in configs.items() if name not in kept}
    if not missing:
        return kept
    first = next(iter(configs))
    measured = step_times({first: configs[first], **missing})
    scale = kept.get(first, measured[first]) / measured[first]
    return {**kept, **{name: measured[name] * scale for name in missing}}


def step_times(configs: dict[str, Config]) -> dict[str, float]:
    """Time the training steps of all objectives in turn; return the median seconds of each.

    On a CPU it is the time of this process's own threads, which other work on the machine hardly changes.
    """
    from hybrid.experiments.measuring.trained import step_seconds
    from hybrid.runs.run import Run

    runs = {name: Run.of(config) for name, config in configs.items()}
    device = next(iter(runs.values())).machine.device
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    return step_seconds({name: run.stepper() for name, run in runs.items()}, TIMED_ROUNDS, device, clock)


def fitting_steps(config: Config, cost: float, base_cost: float) -> int:
    """Compute how many steps take as long as those configured take the first objective; 5% are noise."""
    ratio = cost / base_cost
    return config.trainer.steps if abs(ratio - 1) < 0.05 else max(round(config.trainer.steps / ratio), 1)


def outcome(
    config: Config,
    name: str,
    steps: int,
    cost: float,
    evaluation_model: EvaluationModel | None,
    arguments: argparse.Namespace,
) -> Outcome:
    """Train, if that is not done yet, and evaluate with fixed noise and fixed samples."""
    from hybrid.decoding.engine import generate_shared
    from hybrid.evaluation.diversity import entropy
    from hybrid.experiments.measuring.trained import left_to_right, trained

    run = trained(config, steps, arguments.rows)
    lm, size = run.lm, run.lm.block_sizes[0]
    at_one = left_to_right(lm, run.split, config, arguments.rows)
    length = min(arguments.new_tokens, lm.config.data.seq_len)
    rows = generate_shared(lm.engine(size, stop_at_end=False), [[]] * arguments.samples, length).tokens
    reading = None if evaluation_model is None else evaluation_model.read([lm.tokenizer.decode(row) for row in rows])
    return Outcome(
        name, config.run.seed, steps, cost, run.nelbo, at_one, entropy(rows),
        None if reading is None else reading.gen_ppl,
    )  # fmt: skip


_four_digits = partial(plus_minus, digits=4)


@dataclass(frozen=True)
class Row:
    """One objective; lists hold a value per seed."""

    objective: str = column("objective")
    steps: int = column("steps")
    time: float = column("time of a step", ".2f")  # of that of the first
    nelbo: list[float] = column("ELBO, nats per token", _four_digits)
    gaps: dict[str, list[float] | None] = column("less {}", partial(_four_digits, sign="+"))  # paired by seed
    at_one: list[float] = column("at block size 1", _four_digits)
    entropy: float = column("entropy", ".2f")
    gen_ppl: list[float] | None = column("gen-ppl", partial(plus_minus, digits=1))


def table(outcomes: list[Outcome]) -> Table:
    """Tabulate the objectives, the best first: means over seeds, differences paired by seed."""
    by_name: dict[str, dict[int, Outcome]] = {}
    for o in outcomes:
        by_name.setdefault(o.name, {})[o.seed] = o
    first = next(iter(by_name))
    base = by_name[first]
    rows = []
    for name, runs in sorted(by_name.items(), key=lambda item: statistics.fmean(o.nelbo for o in item[1].values())):
        some = list(runs.values())
        gaps = [o.nelbo - base[seed].nelbo for seed, o in runs.items() if seed in base]
        ppl = [o.gen_ppl for o in some if o.gen_ppl is not None]
        row = Row(
            name, some[0].steps, some[0].seconds_per_step / next(iter(base.values())).seconds_per_step,
            nelbo=[o.nelbo for o in some], gaps={first: None if name == first else gaps},
            at_one=[o.at_one for o in some], entropy=statistics.fmean(o.entropy for o in some), gen_ppl=ppl or None,
        )  # fmt: skip
        rows.append(row)
    return Table(rows)


def _explanation(config: Config, arguments: argparse.Namespace) -> str:
    from hybrid.experiments.measuring.trained import trained_at

    judged = "" if arguments.judge is None else f" Gen-ppl is that of `{arguments.judge}`."
    return f"""\
Corpus {title(config.data.corpus)}, block size {config.objective.block_size}, {config.model.n_layers} layers of
{config.model.dim}, {config.trainer.batch_tokens:,} tokens a step, two noisy streams per clean pass. ± is the standard
error over seeds. Differences are paired by seed. The ELBO is that of {arguments.rows or "all"} validation rows, with
the same noise for all. "At block size 1" is the exact likelihood of the same weights from left to right, for which only
the autoregressive loss trains: `exact`, and with that loss `causal`, which is what it trains. Entropy is that of
{arguments.samples} samples of {arguments.new_tokens} tokens each (`first_hitting`, temperature 1), per sample, in
nats.{judged} Trained at {trained_at(arguments.folder)}."""


def _evaluation_model(arguments: argparse.Namespace) -> EvaluationModel | None:
    if arguments.judge is None:
        return None
    from hybrid.evaluation.evaluation_model import load_evaluation_model

    return load_evaluation_model(arguments.judge)


def parse() -> argparse.Namespace:
    parser = cli.Parser(prog="python -m hybrid.experiments.objectives", description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE", help="what all runs have in common")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over those of the file")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help=f"train these alone, some of: {'; '.join(CONTENDERS)}"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="S", help="seeds of each (default: 0 1 2)"
    )
    parser.add_argument("--folder", default="runs/objectives", help="where the runs go (default: runs/objectives)")
    parser.add_argument("--rows", type=int, default=128, metavar="R", help="validation rows (default: 128; 0: all)")
    parser.add_argument("--samples", type=int, default=16, metavar="N", help="generated texts (default: 16)")
    parser.add_argument("--new-tokens", type=int, default=128, metavar="N", help="tokens of each text (default: 128)")
    parser.add_argument("--judge", metavar="RUN", help="a run or a local Hugging Face folder that reads the samples")
    parser.add_argument("--output", metavar="FILE", help="write Markdown there")
    arguments = parser.parse_intermixed_args()
    for name in arguments.only or []:
        pick("--only", name, CONTENDERS)
    for name, least in (("rows", 0), ("samples", 1), ("new_tokens", 1)):
        at_least(f"--{name.replace('_', '-')}", getattr(arguments, name), least)
    return arguments


if __name__ == "__main__":
    sys.exit(cli.run(main))
