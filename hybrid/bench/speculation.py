"""Speculation against plain autoregressive decoding of the same network, and what a draft must bring to pay.

    python -m hybrid.bench speculate --checkpoint runs/both --length 4 8 --batch 1 8 64
    python -m hybrid.bench speculate --checkpoint runs/both --prompt "Return the" "Raise" --seed 0 1 2 --rule shared
    OMP_NUM_THREADS=1 python -m hybrid.bench speculate --checkpoint runs/both --temperature 0 0.7 --length 4 16

All variants of a batch and a temperature take turns in one process, each with all prompts and seeds, and medians over
the repeats of that are compared. A batch has texts behind all prompts in turn; as many batches are written as all
prompts need. A round reads more rows than a plain step, so speculation pays where it keeps more tokens than its time
has plain steps: the column "pays above". "acceptance" is the share of checked drafts that stood. If each stood as
often, speculation would pay from "acceptance needed" on (-: by none). Texts go on behind an end of text, so all have
one length. With one thread on a CPU (OMP_NUM_THREADS=1) the time is that of this thread, else of the wall clock.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from hybrid import cli
from hybrid.bench import few_rows
from hybrid.bench.rounds import Written, acceptance_needed
from hybrid.options import at_least, pick
from hybrid.results.table import Table, column

if TYPE_CHECKING:
    from hybrid.decoding.engine import Engine
    from hybrid.lm import LanguageModel

PLAIN = "autoregressive"


def rounded(digits: int) -> Callable[[float], float]:
    """Make the form of a column whose numbers are rounded."""
    return partial(round, ndigits=digits)


@dataclass(frozen=True)
class SpeculationRow:
    """Texts written by one decoder; ratios above 1 are faster."""

    batch: int = column("batch")
    temperature: float = column("temperature")
    decoder: str = column("decoder")
    texts: int = column("texts")
    seconds: float = column("seconds", rounded(3))
    min_max: str = column("min-max ms")
    tokens_per_second: float = column("tokens/s", rounded(1))
    of_plain: float = column("of plain", rounded(2))
    nfe: int = column("forwards")
    nfe_per_token: float = column("forwards a token", rounded(3))
    kept: float | None = column("tokens kept a round", rounded(2))  # None: it has no rounds
    pays_above: float | None = column("pays above", rounded(2))
    acceptance: float | None = column("acceptance", rounded(2))
    needed: float | None = column("acceptance needed", rounded(2))
    rounds: str = column("rounds by tokens kept")


def main(arguments: argparse.Namespace) -> int:
    from hybrid.bench.record import Record, refuse_foreign
    from hybrid.config import import_modules
    from hybrid.decoding import GenerationConfig
    from hybrid.decoding.acceptance import RULES
    from hybrid.device import default_precision, keep_freed_memory, resolve_device
    from hybrid.lm import load
    from hybrid.results.timing import clock_of

    refuse_foreign(arguments)
    import_modules(arguments.imports, "--imports")
    for rule in arguments.rule or ():
        pick("--rule", rule, RULES)
    for temperature, seed in itertools.product(arguments.temperature, arguments.seed):
        GenerationConfig(temperature=temperature, noise=arguments.noise, seed=seed)  # or refused
    device = resolve_device(arguments.device, key="--device")
    precision = arguments.precision or default_precision(device, arguments.dtype)
    lm = load(arguments.checkpoint, str(device), precision, arguments.dtype)
    prompts = [lm.tokenizer.encode(prompt) for prompt in arguments.prompt]
    longest = max(map(len, prompts))
    new = _n_new(arguments.new_tokens, lm.config.data.seq_len - longest)
    if device.type == "cpu":
        keep_freed_memory()
    check_decoders(lm, arguments)
    record = Record(arguments, lm.config, device, arguments.seed)
    asked = f"{counted(len(prompts), 'prompt')}, {counted(len(arguments.seed), 'seed')}"
    about = f"{new} tokens a text, {asked}; medians of interleaved repeats, {{}} of them, by {clock_of(device)[0]}."
    few = few_rows.measure(lm, longest + new // 2, arguments.batch, arguments.length, arguments.repeats)
    written = texts(lm, prompts, new, arguments)
    for name, caption, rows, repeats in [
        ("forwards", "A forward of few rows", few, max(arguments.repeats, few_rows.REPEATS)),
        ("texts", f"Speculation and plain decoding, {arguments.noise} noise", written, arguments.repeats),
    ]:
        table = Table([], f"{caption}; {about.format(repeats)}")
        for row in rows:
            table = Table([*table.rows, row], table.caption)
            record.write(name, table)
        print(table.markdown(), end="\n\n")
    record.tell()
    return 0


def _n_new(asked: int | None, room: int) -> int:
    """Tokens of a text: as many as asked for, else all that the context has behind the longest prompt."""
    new = room if asked is None else asked
    if not 1 <= new <= room:
        raise ValueError(
            f"--new-tokens: {new} must be from 1 to {room}, what the context has behind the longest prompt"
        )
    return new


def counted(n: int, what: str) -> str:
    """Write a number of things."""
    return f"{n} {what}{'s' if n > 1 else ''}"


def batches_of(prompts: list[list[int]], rows: int) -> list[list[list[int]]]:
    """Put texts behind all prompts in turn into batches of `rows`, at least one behind each."""
    n = -(-len(prompts) // rows)
    return [[prompts[(i * rows + j) % len(prompts)] for j in range(rows)] for i in range(n)]


def texts(
    lm: LanguageModel, prompts: list[list[int]], new: int, arguments: argparse.Namespace
) -> Iterator[SpeculationRow]:
    """Time every decoder, for each batch and temperature."""
    from hybrid.results.timing import clock_of, interleave

    for rows in arguments.batch:
        batches = batches_of(prompts, rows)
        for temperature in arguments.temperature:
            seeds = arguments.seed if temperature else arguments.seed[:1]
            writers = {
                name: Writer(lm, decoder, batches, new, temperature, seeds, arguments.noise)
                for name, decoder in decoders_of(arguments, temperature).items()
            }
            found = {name: writer.follow() for name, writer in writers.items()}
            timings = interleave(dict(writers), arguments.repeats, lm.device, clock_of(lm.device)[1], uncounted=1)
            plain = timings[PLAIN].median
            for name, timing in timings.items():
                length = writers[name].length
                yield _row(rows, temperature, name, length, timing, plain, plain / found[PLAIN].nfe, found[name])


def check_decoders(lm: LanguageModel, arguments: argparse.Namespace) -> None:
    """Raise a ValueError for a network or an option that does not fit, before anything is timed."""
    from hybrid.config import parse_options

    options = {"temperature": max(arguments.temperature), "noise": arguments.noise}
    lm.engine(decoder=PLAIN, **options)
    for also in arguments.also:
        try:
            for length in arguments.length:
                asked = {"name": "speculative", "length": length, **parse_options(also.split(","))}
                lm.engine(decoder=asked, **options)
        except ValueError as error:
            raise ValueError(f"--also {also}: {error}") from None


def decoders_of(arguments: argparse.Namespace, temperature: float) -> dict[str, Any]:
    from hybrid.config import parse_options
    from hybrid.decoding.acceptance import RULES

    decoders: dict[str, Any] = {PLAIN: {"name": PLAIN}}
    also = [("", {}), *((f", {options}", parse_options(options.split(","))) for options in arguments.also)]
    for length in arguments.length:
        for rule in arguments.rule or RULES if temperature else ("argmax",):  # at temperature 0 all rules are one
            for label, options in also:
                asked = {"name": "speculative", "rule": rule, "length": length, **options}
                decoders[f"{rule}, length {length}{label}"] = asked
    return decoders


@dataclass(frozen=True)
class Writer:
    """Writes all batches with every seed."""

    lm: LanguageModel
    decoder: dict[str, Any]
    batches: list[list[list[int]]]
    new: int
    temperature: float
    seeds: Sequence[int]
    noise: str

    @property
    def length(self) -> int | None:
        """Tokens of a round at most; None: it is no round of two forwards and as many drafts each time."""
        return self.decoder["length"] if self.decoder.keys() == {"name", "rule", "length"} else None

    @cached_property
    def engines(self) -> list[Engine]:
        options = {"temperature": self.temperature, "noise": self.noise, "stop_at_end": False}
        return [self.lm.engine(decoder=self.decoder, seed=seed, **options) for seed in self.seeds]

    def __call__(self) -> None:
        for engine in self.engines:
            for prompts in self.batches:
                engine.generate(prompts, self.new)

    def follow(self) -> Written:
        written = Written()
        for engine in self.engines:
            for prompts in self.batches:
                written.follow(engine.stream(prompts, self.new), self.length)
        return written


def _row(
    rows: int,
    temperature: float,
    name: str,
    length: int | None,
    timing: Any,
    plain: float,
    plain_step: float,
    found: Written,
) -> SpeculationRow:
    n_rounds, kept = sum(found.kept), sum(k * n for k, n in enumerate(found.kept))
    pays_above = timing.median / found.rounds / plain_step if n_rounds else None
    return SpeculationRow(
        rows, temperature, name, found.texts, timing.median, timing.min_max,
        tokens_per_second=found.tokens / timing.median,
        of_plain=plain / timing.median,
        nfe=found.nfe,
        nfe_per_token=found.nfe * rows / found.tokens,
        kept=kept / n_rounds if n_rounds else None,
        pays_above=pays_above,
        acceptance=found.stood / found.checked if n_rounds and found.checked else None,
        needed=None if pays_above is None or length is None else acceptance_needed(pays_above, length),
        rounds=" ".join(map(str, found.kept)),
    )  # fmt: skip


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser(prog="python -m hybrid.bench speculate", description=__doc__)
    cli.add_model(parser)
    parser.add_argument(
        "--prompt", nargs="+", default=[""], metavar="TEXT", help="what texts go on from (default: nothing)"
    )
    parser.add_argument("--new-tokens", type=int, metavar="N", help="tokens of a text (default: what fits)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64], metavar="R", help="texts (default: 1 8 64)")
    parser.add_argument(
        "--length", type=int, nargs="+", default=[8], metavar="L", help="tokens of a round at most (default: 8)"
    )
    parser.add_argument(
        "--temperature", type=float, nargs="+", default=[0.0, 1.0], metavar="T", help="of the texts (default: 0 1)"
    )
    parser.add_argument("--rule", nargs="+", metavar="RULE", help="how a draft is drawn and kept (default: all rules)")
    parser.add_argument(
        "--also",
        nargs="+",
        default=[],
        metavar="key=value,...",
        help="options of `speculative`, timed beside without: each word, or several joined by commas, is one variant",
    )
    parser.add_argument("--noise", default="gumbel", metavar="NOISE", help="gumbel or inverse (default: gumbel)")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="counted timings (default: 7)")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], metavar="S", help="of the texts (default: 0)")
    parser.add_argument("--output", metavar="FILE", help="write the tables here as Markdown")
    parser.add_argument("--json", metavar="FILE", help="write the results here as JSON")
    cli.add_machine(parser)
    a = parser.parse_args(words)
    at_least("--repeats", a.repeats, 1)
    at_least("--batch", min(a.batch), 1)
    at_least("--length", min(a.length), 2)
    a.what = "speculate"
    return a
