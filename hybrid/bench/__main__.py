"""Speed of training and generation, against baselines on the same weights.

    python -m hybrid.bench train                            # dim 256, 6 layers, 16 rows of 256 bytes, block size 16
    python -m hybrid.bench train data.seq_len=1024 trainer.batch_tokens=16384
    python -m hybrid.bench train --vocab 32000 --memory
    python -m hybrid.bench generate --new-tokens 512 --batch 1 8 64
    python -m hybrid.bench attention data.seq_len=1024 trainer.batch_tokens=4096
    python -m hybrid.bench growth                           # rows, blocks and vocabularies of many sizes
    python -m hybrid.bench speculate --checkpoint runs/both # drafts against plain autoregressive decoding; see --help
    python -m hybrid.bench gpu --help                       # what only a GPU can show

Settings are those of train.py. Variants take turns in one process, and medians are compared: machines are noisy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hybrid import cli
from hybrid.bench import speculation
from hybrid.bench.gpu import command
from hybrid.options import at_least

if TYPE_CHECKING:
    from hybrid.config import Config

DEFAULTS = ["objective.block_size=16", "trainer.batch_tokens=4096"]
STEPS = ("train", "growth")
"""Tables of training steps, whose layers are compiled as `trainer.compile` says."""

COMMANDS = {"speculate": speculation, "gpu": command}
"""Benchmarks with options of their own."""

PARTS = {
    "attention": "Attention of one layer, forward and backward",
    "head": "Head and loss, forward and backward",
    "data": "What a training step does before the network runs",
    "growth": "Training steps of equally many tokens",
}

WHAT = (
    "a training step; generation; of a step one layer's attention, its head and loss, or its data; steps as one size "
    "grows; or all of these; with options of their own: speculate, drafts and plain decoding; gpu, what only a GPU can "
    "show"
)


def main() -> int:
    arguments = parse()
    if arguments.what in COMMANDS:
        return COMMANDS[arguments.what].main(arguments)
    from hybrid.bench.record import Record, refuse_foreign
    from hybrid.config import load_config
    from hybrid.device import keep_freed_memory, resolve_device
    from hybrid.results.table import Table

    refuse_foreign(arguments)
    overrides = arguments.overrides if arguments.config else [*DEFAULTS, *arguments.overrides]
    config = load_config(arguments.config, overrides)
    device = resolve_device(config.run.device)
    if device.type == "cpu":
        keep_freed_memory()
    record = Record(arguments, config, device)
    for name, caption, rows in measurements(arguments, config):
        table = Table([], caption)
        try:
            for row in rows:
                table = Table([*table.rows, row], caption)
                record.write(name, table)
        finally:
            if table.rows:
                print(table.markdown(), end="\n\n")
    record.tell()
    return 0


def measurements(arguments: argparse.Namespace, config: Config) -> Iterator[tuple[str, str, Iterator[Any]]]:
    """Yield what is asked for: the name of a table, its caption, and its rows, which are measured as they are taken."""
    from hybrid.bench import generation, parts, training

    a, setting = arguments, training.Setting.of(config, arguments.vocab)
    rows: dict[str, Iterator[Any]] = {}
    sizes = f"{setting.rows} rows of {setting.seq_len} tokens"
    captions = {"train": f"Training on {sizes}", "generate": f"Generation of {a.new_tokens} tokens"}
    captions |= {name: f"{caption}; {sizes}" for name, caption in PARTS.items()}
    if a.what in ("train", "all"):
        rows["train"] = training.measure(setting, a.repeats, a.memory)
    if a.what in ("generate", "all"):
        rows["generate"] = generation.measure(setting, a.new_tokens, a.batch, a.repeats, a.uncached)
    for name in PARTS:
        if a.what in (name, "all"):
            rows[name] = getattr(parts, name)(setting, a.repeats)
    c = config.model
    model = f"dim {c.dim}, {c.n_layers} layers, vocabulary {a.vocab}, block size {setting.block_size}"
    about = f"{model}; medians of {a.repeats} interleaved repeats"
    compiled = f"; layers {'compiled' if setting.compiles else 'not compiled'}"
    for name, of_one in rows.items():
        yield name, f"{captions[name]}; {about}{compiled if name in STEPS else ''}.", of_one


def parse() -> argparse.Namespace:
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        return COMMANDS[sys.argv[1]].parse(sys.argv[2:])
    parser = cli.Parser(prog="python -m hybrid.bench", description=__doc__)
    parser.add_argument("what", choices=("train", "generate", *PARTS, "all", *COMMANDS), help=WHAT)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over those of the file")
    parser.add_argument("--config", metavar="FILE", help="a YAML file; default: the small model of the docs")
    parser.add_argument("--vocab", type=int, default=257, metavar="V", help="size of the vocabulary (default: 257)")
    parser.add_argument(
        "--repeats", type=int, default=7, metavar="N", help="timings of which the median is taken (default: 7)"
    )
    parser.add_argument("--memory", action="store_true", help="train: also the peak memory of a step")
    parser.add_argument(
        "--new-tokens", type=int, default=1024, metavar="N", help="generate: tokens of a text (default: 1024)"
    )
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[1], metavar="R", help="generate: texts at once (default: 1)"
    )
    parser.add_argument(
        "--uncached", action="store_true",
        help="generate: also without a cache, and with a forward of its own to commit a block",
    )  # fmt: skip
    parser.add_argument("--output", metavar="FILE", help="write the tables here as Markdown")
    parser.add_argument("--json", metavar="FILE", help="write the results here as JSON")
    a = parser.parse_intermixed_args()
    at_least("--vocab", a.vocab, 2)
    at_least("--repeats", a.repeats, 1)
    at_least("--new-tokens", a.new_tokens, 1)
    at_least("--batch", min(a.batch), 1)
    return a


if __name__ == "__main__":
    sys.exit(cli.run(main))
