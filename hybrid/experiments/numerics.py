"""What float32 does to samplers in which MASK competes with the tokens: unmasking rate, entropy, likelihood.

python -m hybrid.experiments.numerics
python -m hybrid.experiments.numerics --checkpoint runs/masked --output docs/numerics.md

Without a checkpoint: one masked token whose distribution is Zipf's, where the exact law is known. With one: also
texts of the model, at several step counts.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hybrid import cli
from hybrid.experiments.measuring.subject import Subject, add_options, check_counts
from hybrid.results.table import Table, column, plus_minus, standard_error

if TYPE_CHECKING:
    import numpy as np

ZIPF_VOCAB = 50_257
"""Of GPT-2. With p proportional to 1 / rank the entropy is 7.566 nats, the 7.57 of the published figures."""

PUBLISHED = {64: (0.88, 6.90), 1024: (0.64, 5.31), 10_000: (0.44, 3.91)}
"""1 / (unmasking probability) -> rate and entropy in float32, from Zheng et al. 2409.02908, section 5."""

ABOUT = """\
A masked token is revealed with probability q. The joint sampler takes an argmax of Gumbel noise over tokens and MASK;
the decoupled one, which all decoders of this repository use, draws first whether and then what. In exact arithmetic
they are the same. Float32 uniforms are at most 1 - 2^-24 (`hybrid/experiments/reverse_process/joint_sampler.py`)."""

PLOT = "Against the number of steps: unmasking rate, entropy of a text, and its cost under the model"


def main() -> int:
    a = parse()
    from hybrid.results.publish import publish, refuse_foreign

    refuse_foreign(a.output, plots=1 if a.checkpoint else 0)
    # On the CPU: torch.rand rounds otherwise on other devices, and the question is what one arithmetic does.
    subject = Subject.load(a, "cpu") if a.checkpoint else None
    parts: list[str | Table] = [ABOUT, zipf_table(a.samples, a.seeds)]
    plots = {}
    if subject is not None:
        results = text_results(subject, a)
        parts.append(text_table(subject, a, results))
        plots[PLOT] = text_plot(results)
    publish(a.output, "hybrid.experiments.numerics", "Sampling in float32", a.seeds, parts, plots)
    return 0


@dataclass(frozen=True)
class ZipfRow:
    """What is known in one way of the tokens that are revealed with probability q."""

    q: str = column("q")  # where it is not that of the line above
    how: str = column("how")
    arithmetic: str = column("arithmetic")
    rate: str = column("rate")
    entropy: str = column("entropy")


def zipf_table(samples: int, seeds: list[int]) -> Table:
    """Tabulate published, computed and simulated rate and entropy for each unmasking probability."""
    import numpy as np
    import torch

    from hybrid.experiments.reverse_process.joint_sampler import (
        SAMPLERS,
        entropy_of_counts,
        entropy_of_law,
        joint_law,
        on_grid,
        simulate,
        truncated,
        untouched,
    )

    probs = 1 / np.arange(1, ZIPF_VOCAB + 1)
    probs /= probs.sum()
    log_probs = torch.from_numpy(probs).log()[None]
    laws = {"exact arithmetic": untouched, "Gumbel truncated at 24 ln 2": truncated, "float32 grid": on_grid}
    rows = []
    for one_in, (rate, entropy) in PUBLISHED.items():
        rows.append(ZipfRow(f"1/{one_in:,}", "published", "float32", f"{rate:.2f}", f"{entropy:.2f}"))
        for name, arrival in laws.items():
            law = joint_law(probs, 1 / one_in, arrival)
            rows.append(ZipfRow("", "computed", name, f"{law.sum() * one_in:.3f}", f"{entropy_of_law(law):.3f}"))
        for name, sampler in SAMPLERS.items():
            print(f"Zipf, unmasking probability 1/{one_in}: {name}", file=sys.stderr)
            counts = [simulate(sampler, log_probs, 1 / one_in, samples, seed) for seed in seeds]
            rates, entropies = [float(c.sum()) / samples for c in counts], [entropy_of_counts(c) for c in counts]
            rows.append(ZipfRow("", "simulated", name, plus_minus(rates), plus_minus(entropies)))
    caption = (
        f"**One token of Zipf's law.** p is proportional to 1/rank over {ZIPF_VOCAB:,} tokens, with an entropy of "
        f"{entropy_of_law(probs):.3f} nats. Rate: unmaskings relative to their true number. Entropy: of the revealed "
        "tokens, in nats; simulated ones by Grassberger's estimator, which still falls short of 7.566 by about 0.02 at "
        f"200,000 tokens. Simulated: {samples:,} expected unmaskings for each of {len(seeds)} seeds; ± is the "
        "standard error over seeds."
    )
    return Table(rows, caption)


@dataclass(frozen=True)
class Texts:
    """Texts of one sampler at one number of steps; an item per seed."""

    steps: int = column("steps")
    sampler: str = column("sampler")
    rate: list[float] = column("rate", plus_minus, default_factory=list)
    entropy: list[float] = column("entropy of a text", plus_minus, default_factory=list)
    bound: list[float] = column("nats per token (bound)", plus_minus, default_factory=list)
    exact: list[float] | None = column(
        "nats per token (exact, block size 1)", plus_minus, optional=True, default_factory=list
    )
    forwards: list[float] = column("forwards per token", plus_minus, default_factory=list)


def text_results(subject: Subject, a: argparse.Namespace) -> list[Texts]:
    """Generate and measure with every sampler, step count and seed."""
    from hybrid.evaluation.diversity import entropy
    from hybrid.experiments.reverse_process.joint_sampler import SAMPLERS
    from hybrid.experiments.reverse_process.step_by_step import generate

    model, length = subject.lm.model, subject.length
    is_exact = 1 in subject.lm.block_sizes and subject.block_size > 1
    results = []
    for name, sampler in SAMPLERS.items():
        for steps in a.steps:
            measured = Texts(steps, name, exact=[] if is_exact else None)
            for seed in a.seeds:
                print(f"texts, {steps} steps, seed {seed}: {name}", file=sys.stderr)
                texts = generate(model, sampler, a.rows, length, subject.block_size, steps, seed)
                measured.rate.append(texts.rate)
                measured.entropy.append(entropy(texts.tokens.tolist()))
                measured.bound.append(subject.nats(texts.tokens))
                measured.forwards.append(texts.forwards / length)
                if measured.exact is not None:
                    measured.exact.append(subject.exact_nats(texts.tokens))
            results.append(measured)
    return results


def text_table(subject: Subject, a: argparse.Namespace, results: list[Texts]) -> Table:
    caption = (
        f"{subject.describe(a.rows)} Linear schedule. Rate: as above, without the last steps, in which nothing may "
        f"stay masked. Forwards: steps that changed a text. ± is the standard error over the {len(a.seeds)} seeds."
    )
    return Table(sorted(results, key=lambda texts: texts.steps), caption)


def text_plot(results: list[Texts]) -> np.ndarray:
    import numpy as np

    from hybrid.results.plot import Panel, curves

    def panel(measured: str, title: str, level: dict[str, float]) -> Panel:
        lines = {}
        for name in dict.fromkeys(texts.sampler for texts in results):
            values = [(t.steps, getattr(t, measured)) for t in results if t.sampler == name]
            lines[name] = list(zip(*[(steps, np.mean(v), standard_error(v)) for steps, v in values], strict=True))
        return Panel(title, "steps per block", "", lines, level)

    return curves([
        panel("rate", "unmasking rate / its true value", {"true": 1.0}),
        panel("entropy", "entropy of a text (nats)", {}),
        panel("bound", "nats per token under the model (bound)", {}),
    ])  # fmt: skip


def parse() -> argparse.Namespace:
    parser = cli.Parser(prog="python -m hybrid.experiments.numerics", description=__doc__)
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[8, 64, 512, 4096], metavar="T",
        help="steps of a block (default: 8 64 512 4096)",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=int, default=200_000, metavar="N", help="expected unmaskings of Zipf's law (default: 200,000)"
    )
    add_options(parser, rows=8)
    a = parser.parse_args()
    check_counts(a, "steps", "samples")
    a.steps = sorted(set(a.steps))
    return a


if __name__ == "__main__":
    sys.exit(cli.run(main))
