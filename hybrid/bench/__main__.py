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
from typing import Any

from hybrid import cli
from hybrid.options import at_least

DEFAULTS = ["objective.block_size=16", "trainer.batch_tokens=4096"]
PARTS = {
    "attention": "Attention of one layer, forward and backward",
    "head": "Head and loss, forward and backward",
    "data": "What a training step does before the network runs",
    "growth": "Training steps of equally many tokens",
}


def main() -> int:
    a = parse()
    from hybrid.config import load_config

    config = load_config(a.config, a.overrides if a.config else [*DEFAULTS, *a.overrides])
    from hybrid.bench import generation, parts, training
    from hybrid.config import resolve_block_sizes
    from hybrid.device import keep_freed_memory, resolve_device
    from hybrid.results.table import Table, publish, refuse_foreign

    refuse_foreign(a.output)
    refuse_foreign_json(a)
    device = resolve_device(config.run.device)
    if device.type == "cpu":
        keep_freed_memory()
    seq_len = config.data.seq_len
    setting = training.Setting(
        config.model, a.vocab, seq_len, config.trainer.batch_tokens // seq_len,
        resolve_block_sizes(config.objective.block_size, seq_len)[0], config.trainer.precision, config.run.device,
    )  # fmt: skip
    results: dict[str, list[dict[str, Any]]] = {}
    captions = {}
    if a.what in ("train", "all"):
        results["train"] = training.measure(setting, a.repeats, a.memory)
        captions["train"] = f"Training on {setting.rows} rows of {seq_len} tokens"
    if a.what in ("generate", "all"):
        results["generate"] = generation.measure(setting, a.new_tokens, a.batch, a.repeats, a.uncached)
        captions["generate"] = f"Generation of {a.new_tokens} tokens"
    for name, caption in PARTS.items():
        if a.what in (name, "all"):
            results[name] = getattr(parts, name)(setting, a.repeats)
            captions[name] = f"{caption}; {setting.rows} rows of {seq_len} tokens"
    c = config.model
    model = f"dim {c.dim}, {c.n_layers} layers, vocabulary {a.vocab}, block size {setting.block_size}"
    about = f"{model}; medians of {a.repeats} interleaved repeats."
    tables = [
        Table(list(rows[0]), [list(row.values()) for row in rows], f"{captions[name]}; {about}")
        for name, rows in results.items()
    ]
    publish(a.output, "hybrid.bench", "Speed", [0], tables, device=str(device))
    if a.json is not None:
        from hybrid.results.environment import environment
        from hybrid.storage.atomic import write_json_atomic

        refuse_foreign_json(a)
        Path(a.json).parent.mkdir(parents=True, exist_ok=True)
        facts = {"results": results, "options": vars(a), "config": dataclasses.asdict(config)}
        write_json_atomic(a.json, {**facts, "environment": environment(device)})
        print(f"wrote {a.json}", file=sys.stderr)
    return 0


def refuse_foreign_json(a: argparse.Namespace) -> None:
    """Raise a ValueError if the figures would replace something else."""
    from hybrid.storage.overwriting import has_keys, refuse_overwriting

    if a.json is not None:
        if a.output is not None and Path(a.json).absolute() == Path(a.output).absolute():
            raise ValueError(f"--json: {a.json} is the file of --output; choose another file")
        keys = ("results", "options", "config", "environment")
        refuse_overwriting(Path(a.json), lambda p: has_keys(p, keys), "does not hold figures of hybrid.bench", "--json")


def parse() -> argparse.Namespace:
    parser = cli.Parser(prog="python -m hybrid.bench", description=__doc__)
    parser.add_argument("what", choices=("train", "generate", *PARTS, "all"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over those of the file")
    parser.add_argument("--config", metavar="FILE", help="a YAML file; default: the small model of the docs")
    parser.add_argument("--vocab", type=int, default=257, metavar="V", help="size of the vocabulary (default: 257)")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="counted repeats (default: 7)")
    parser.add_argument("--memory", action="store_true", help="train: also the peak memory of a step")
    parser.add_argument("--new-tokens", type=int, default=1024, metavar="N", help="generate: of a text (default: 1024)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], metavar="R", help="generate: texts (default: 1)")
    parser.add_argument("--uncached", action="store_true", help="generate: also without a cache, and committing apart")
    parser.add_argument("--output", metavar="FILE", help="a Markdown file for the table")
    parser.add_argument("--json", metavar="FILE", help="a file for the figures")
    a = parser.parse_intermixed_args()
    at_least("--vocab", a.vocab, 2)
    at_least("--repeats", a.repeats, 1)
    at_least("--new-tokens", a.new_tokens, 1)
    at_least("--batch", min(a.batch), 1)
    return a


if __name__ == "__main__":
    sys.exit(cli.run(main))
