"""Speculation against plain autoregressive decoding of the same network, and what a draft must bring to pay.

    python -m hybrid.bench speculate --checkpoint runs/both --length 8 --batch 1 8 64
    python -m hybrid.bench speculate --checkpoint runs/both --prompt "Return the" --temperature 0 0.7 --length 4 16

All variants of a batch and a temperature take turns in one process, and medians are compared. A round is two forwards
of about `length` rows, a plain step one of a single row, so speculation pays where a round keeps more tokens than it
takes times as long as a plain step: the column "pays above". Texts go on behind an end of text, so all have one length.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hybrid import cli
from hybrid.options import at_least
from hybrid.results.table import Table, column

if TYPE_CHECKING:
    from hybrid.decoding.results import Generation
    from hybrid.lm import LanguageModel

PLAIN = "autoregressive"
STEPS = 16
"""Forwards timed at once."""


def rounded(digits: int) -> Callable[[float], float]:
    """Make the form of a column whose numbers are rounded."""
    return partial(round, ndigits=digits)


@dataclass(frozen=True)
class SpeculationRow:
    """Texts written by one decoder; ratios above 1 are faster."""

    batch: int = column("batch")
    temperature: float = column("temperature")
    decoder: str = column("decoder")
    seconds: float = column("seconds", rounded(3))
    min_max: str = column("min-max ms")
    of_plain: float = column("of plain", rounded(2))
    nfe: int = column("forwards")
    kept: float | None = column("tokens kept a round", rounded(2))  # None: it has no rounds
    pays_above: float | None = column("pays above", rounded(2))
    rounds: str = column("rounds by tokens kept")


@dataclass(frozen=True)
class ForwardRow:
    """One forward over half a text of keys and values."""

    batch: int = column("batch")
    rows: int = column("rows of a text")
    milliseconds: float = column("ms", rounded(2))
    of_one: float = column("of one row", rounded(2))


def main(arguments: argparse.Namespace) -> int:
    from hybrid.bench.record import Record, refuse_foreign
    from hybrid.config import import_modules
    from hybrid.decoding import GenerationConfig
    from hybrid.device import default_precision, keep_freed_memory, resolve_device
    from hybrid.lm import load

    refuse_foreign(arguments)
    import_modules(arguments.imports, "--imports")
    for temperature in arguments.temperature:
        GenerationConfig(temperature=temperature, noise=arguments.noise, seed=arguments.seed)  # or refused
    device = resolve_device(arguments.device, key="--device")
    precision = arguments.precision or default_precision(device, arguments.dtype)
    lm = load(arguments.checkpoint, str(device), precision, arguments.dtype)
    prompt = lm.tokenizer.encode(arguments.prompt)
    room = lm.config.data.seq_len - len(prompt)
    new = room if arguments.new_tokens is None else arguments.new_tokens
    if not 1 <= new <= room:
        raise ValueError(f"--new-tokens: {new} must be from 1 to {room}, what the context has behind the prompt")
    if device.type == "cpu":
        keep_freed_memory()
    record = Record(arguments, lm.config, device)
    about = f"{new} tokens behind {len(prompt)} of a prompt; medians of {arguments.repeats} interleaved repeats."
    for name, caption, rows in [
        ("forwards", "A forward of few rows", forwards(lm, len(prompt) + new // 2, arguments)),
        ("texts", f"Speculation and plain decoding, {arguments.noise} noise", texts(lm, prompt, new, arguments)),
    ]:
        table = Table([], f"{caption}; {about}")
        for row in rows:
            table = Table([*table.rows, row], table.caption)
            record.write(name, table)
        print(table.markdown(), end="\n\n")
    record.tell()
    return 0


def texts(lm: LanguageModel, prompt: list[int], new: int, arguments: argparse.Namespace) -> Iterator[SpeculationRow]:
    """Time every decoder, for each batch and temperature."""
    from hybrid.decoding.acceptance import RULES
    from hybrid.results.timing import interleave

    for batch in arguments.batch:
        for temperature in arguments.temperature:
            decoders: dict[str, Any] = {PLAIN: PLAIN}
            for length in arguments.length:
                for rule in RULES if temperature else ("argmax",):  # at temperature 0 all rules are one
                    decoders[f"{rule}, length {length}"] = {"name": "speculative", "rule": rule, "length": length}
            runs = {
                name: _writer(lm, [prompt] * batch, new, decoder, temperature, arguments)
                for name, decoder in decoders.items()
            }
            found = {name: run() for name, run in runs.items()}
            timings = interleave(runs, arguments.repeats, lm.device)
            plain = timings[PLAIN].median
            for name, timing in timings.items():
                yield _row(batch, temperature, name, timing, plain / found[PLAIN].nfe, plain, found[name])


def _writer(
    lm: LanguageModel, prompts: list[list[int]], new: int, decoder: Any, temperature: float,
    arguments: argparse.Namespace,
) -> Callable[[], Generation]:  # fmt: skip
    engine = lm.engine(
        decoder=decoder, temperature=temperature, noise=arguments.noise, seed=arguments.seed, stop_at_end=False
    )
    return lambda: engine.generate(prompts, new)


def _row(
    batch: int, temperature: float, name: str, timing: Any, plain_step: float, plain: float, result: Generation
) -> SpeculationRow:
    n_rounds, kept = sum(result.kept), sum(k * n for k, n in enumerate(result.kept))
    return SpeculationRow(
        batch, temperature, name, timing.median, timing.min_max,
        of_plain=plain / timing.median,
        nfe=result.nfe,
        kept=kept / n_rounds if n_rounds else None,
        pays_above=2 * timing.median / result.nfe / plain_step if n_rounds else None,
        rounds=" ".join(map(str, result.kept)),
    )  # fmt: skip


def forwards(lm: LanguageModel, read: int, arguments: argparse.Namespace) -> Iterator[ForwardRow]:
    """Time forwards of clean rows behind `read` tokens, for each batch and length."""
    from hybrid.model.fused import for_inference
    from hybrid.results.timing import interleave

    model = for_inference(lm.model, lm.model.dtype)
    for batch in arguments.batch:
        sizes = sorted({1, *arguments.length})
        timings = interleave({str(n): _forward(model, batch, read, n) for n in sizes}, arguments.repeats, lm.device)
        for n in sizes:
            of_one = timings[str(n)].median / timings["1"].median
            yield ForwardRow(batch, n, 1e3 * timings[str(n)].median / STEPS, of_one)


def _forward(model: Any, batch: int, read: int, n: int) -> Callable[[], None]:
    import torch

    from hybrid.model.block_pass import BlockRows, Sight, rows_hidden

    cache = model.new_cache(batch, read + n)
    tokens = torch.zeros(batch, n, dtype=torch.long, device=model.device)
    rows = BlockRows([read] * batch, list(tokens), tokens[:, :0], [0] * batch)

    def run() -> None:
        with torch.no_grad():
            for _ in range(STEPS):
                model.head(rows_hidden(model, cache, rows, Sight(1, reads_clean=True)))

    return run


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser(prog="python -m hybrid.bench speculate", description=__doc__)
    cli.add_model(parser)
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what all texts go on from (default: nothing)")
    parser.add_argument("--new-tokens", type=int, metavar="N", help="tokens of a text (default: what fits)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64], metavar="R", help="texts (default: 1 8 64)")
    parser.add_argument(
        "--length", type=int, nargs="+", default=[8], metavar="L", help="tokens of a round at most (default: 8)"
    )
    parser.add_argument(
        "--temperature", type=float, nargs="+", default=[0.0, 1.0], metavar="T", help="of the texts (default: 0 1)"
    )
    parser.add_argument("--noise", default="gumbel", metavar="NOISE", help="gumbel or inverse (default: gumbel)")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="counted timings (default: 7)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the texts (default: 0)")
    parser.add_argument("--output", metavar="FILE", help="write the tables here as Markdown")
    parser.add_argument("--json", metavar="FILE", help="write the results here as JSON")
    cli.add_machine(parser)
    a = parser.parse_args(words)
    at_least("--repeats", a.repeats, 1)
    at_least("--batch", min(a.batch), 1)
    at_least("--length", min(a.length), 2)
    a.what = "speculate"
    return a
