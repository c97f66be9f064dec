"""Speed of training and generation, against baselines on the same weights.

    python -m hybrid.bench train                            # dim 256, 6 layers, 16 rows of 256 bytes, block size 16
    python -m hybrid.bench train data.seq_len=1024 trainer.batch_tokens=16384
    python -m hybrid.bench train --vocab 32000 --memory
    python -m hybrid.bench generate --new-tokens 512 --batch 1 8 64
    python -m hybrid.bench attention data.seq_len=1024 trainer.batch_tokens=4096
    python -m hybrid.bench growth                           # rows, blocks and vocabularies of many sizes

Settings are those of train.py. Variants take turns in one process, and medians are compared: machines are noisy.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid import cli
from hybrid.options import at_least

if TYPE_CHECKING:
    import torch

    from hybrid.config import Config
    from hybrid.results.table import Table

DEFAULTS = ["objective.block_size=16", "trainer.batch_tokens=4096"]
PARTS = {
    "attention": "Attention of one layer, forward and backward",
    "head": "Head and loss, forward and backward",
    "data": "What a training step does before the network runs",
    "growth": "Training steps of equally many tokens",
}

WHAT = (
    "a training step; generation; of a step one layer's attention, its head and loss, or its data; steps as one size "
    "grows; or all"
)


def main() -> int:
    arguments = parse()
    from hybrid.config import load_config
    from hybrid.device import keep_freed_memory, resolve_device
    from hybrid.results.publish import publish, refuse_foreign

    refuse_foreign(arguments.output)
    refuse_foreign_json(arguments)
    overrides = arguments.overrides if arguments.config else [*DEFAULTS, *arguments.overrides]
    config = load_config(arguments.config, overrides)
    device = resolve_device(config.run.device)
    if device.type == "cpu":
        keep_freed_memory()
    tables = measure(arguments, config)
    publish(arguments.output, "hybrid.bench", "Speed", [0], list(tables.values()), device=str(device))
    if arguments.json is not None:
        write_json(arguments, config, tables, device)
    return 0


def measure(arguments: argparse.Namespace, config: Config) -> dict[str, Table]:
    """Measure what is asked for; return a table of each thing, by its name."""
    from hybrid.bench import generation, parts, training
    from hybrid.results.table import Table

    a, setting = arguments, training.Setting.of(config, arguments.vocab)
    rows: dict[str, list[Any]] = {}
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
    about = f"{model}; medians of {a.repeats} interleaved repeats."
    return {name: Table(of_one, f"{captions[name]}; {about}") for name, of_one in rows.items()}


def write_json(a: argparse.Namespace, config: Config, tables: dict[str, Table], device: torch.device) -> None:
    """Write the numbers, and what they were measured with."""
    from hybrid.results.environment import environment
    from hybrid.storage.atomic import write_json_atomic

    refuse_foreign_json(a)
    Path(a.json).parent.mkdir(parents=True, exist_ok=True)
    results = {name: table.records() for name, table in tables.items()}
    facts = {"results": results, "options": vars(a), "config": dataclasses.asdict(config)}
    write_json_atomic(a.json, {**facts, "environment": environment(device)})
    print(f"wrote {a.json}", file=sys.stderr)


def refuse_foreign_json(a: argparse.Namespace) -> None:
    """Raise a ValueError if the numbers would replace something else."""
    from hybrid.storage.overwriting import has_keys, refuse_overwriting

    if a.json is not None:
        if a.output is not None and Path(a.json).absolute() == Path(a.output).absolute():
            raise ValueError(f"--json: {a.json} is the file of --output; choose another file")
        keys = ("results", "options", "config", "environment")
        refuse_overwriting(Path(a.json), lambda p: has_keys(p, keys), "does not hold figures of hybrid.bench", "--json")


def parse() -> argparse.Namespace:
    parser = cli.Parser(prog="python -m hybrid.bench", description=__doc__)
    parser.add_argument("what", choices=("train", "generate", *PARTS, "all"), help=WHAT)
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
