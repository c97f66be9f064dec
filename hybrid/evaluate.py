"""Evaluate a trained model: a table of likelihoods by block size, and eval.json.

python -m hybrid.evaluate --checkpoint runs/quickstart
python -m hybrid.evaluate --checkpoint runs/quickstart --block-size 1 4 16 --draws 16
python -m hybrid.evaluate --checkpoint runs/quickstart --data "my/texts/*.txt"
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

from hybrid import cli


def main() -> int:
    arguments = parse()
    from hybrid.data import prepare  # late, so that --help is quick
    from hybrid.device import precision_context
    from hybrid.likelihood import MAX_ENUMERATED
    from hybrid.lm import load

    lm = load(arguments.checkpoint, device=arguments.device, precision=arguments.precision)
    sizes = arguments.block_size or lm.block_sizes
    for size in sizes:
        lm.engine(block_size=size)  # warns of a size that was not trained, refuses an impossible one
    if arguments.enumerate and max(sizes) > MAX_ENUMERATED:
        raise ValueError(
            f"--enumerate: block size {max(sizes)} is too long (at most {MAX_ENUMERATED}); leave it out, or --enumerate"
        )
    data = dataclasses.replace(lm.config.data)
    if arguments.data is not None:
        data.corpus, data.format, data.revision = arguments.data, "auto", arguments.revision
    prepared = prepare(data, tokenizer=lm.tokenizer)
    name = arguments.split or ("validation" if arguments.data is None else "all")
    split = prepared.everything() if name == "all" else getattr(prepared, name)
    rows = evaluate(
        lm, split, sizes, rows=arguments.rows, draws=arguments.draws, seed=arguments.seed,
        batch_rows=arguments.batch_rows, enumerate_orders=arguments.enumerate,
        precision=precision_context(arguments.precision, lm.device),
    )  # fmt: skip
    print(table(rows))
    output = Path(arguments.output) if arguments.output else default_output(arguments.checkpoint)
    write(output, rows, prepared.description, arguments)
    print(f"wrote {output}", file=sys.stderr)
    return 0


def evaluate(
    lm, split, sizes: list[int], *, rows: int, draws: int, seed: int, batch_rows: int, enumerate_orders: bool, precision
) -> list[dict[str, Any]]:
    """One dict per line of the table. Values are in nats per target token unless their name says otherwise."""
    from hybrid.validation import any_order, bound

    result = []
    for size in sizes:
        b = bound(
            lm.model, split, size, rows=rows, draws=draws, batch_rows=batch_rows, seed=seed, precision=precision
        )  # fmt: skip
        result.append(_line(size, b.method, b.nelbo, b.stderr, b.tokens, split.bytes_per_token))
        result[-1]["by_count"] = b.by_count
        if enumerate_orders and size > 1:
            nll, tokens = any_order(lm.model, split, size, rows=rows, batch_rows=batch_rows, precision=precision)
            result.append(_line(size, "enumerate", nll, 0.0, tokens, split.bytes_per_token))
    return result


def _line(size: int, method: str, nats: float, stderr: float, tokens: int, bytes_per_token: float) -> dict[str, Any]:
    from hybrid.validation import perplexity

    return {
        "block_size": size,
        "likelihood": method,
        "nats_per_token": nats,
        "stderr": stderr,
        "perplexity": perplexity(nats),
        "bits_per_byte": nats / math.log(2) / bytes_per_token,
        "tokens": tokens,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Plain text; `stderr` is that of the noise, for these rows of text."""
    head = f"{'block size':>10}  {'likelihood':10}  {'nats/token':>10}  {'+-':>8}  {'perplexity':>10}  {'bits/byte':>9}"
    lines = [head, "-" * len(head)]
    for r in rows:
        sign = "<=" if r["likelihood"] == "bound" else "= "
        error = "nan" if math.isnan(r["stderr"]) else f"{r['stderr']:.4f}"
        lines.append(
            f"{r['block_size']:>10}  {r['likelihood']:10}  {sign}{r['nats_per_token']:>8.4f}  {error:>8}  "
            f"{r['perplexity']:>10.3f}  {r['bits_per_byte']:>9.4f}"
        )
    return "\n".join(lines)


def default_output(checkpoint: str) -> Path:
    """eval.json in the folder that was named (of a folder of checkpoints or one of its steps: in their run)."""
    path = Path(checkpoint).absolute()
    run = next((p.parent for p in (path, path.parent) if p.name == "checkpoints"), path)
    return run / "eval.json"


def write(path: Path, rows: list[dict[str, Any]], data: dict[str, Any], arguments: argparse.Namespace) -> None:
    from hybrid.atomic import write_json_atomic
    from hybrid.tracking import environment

    settings = {key: value for key, value in vars(arguments).items() if key != "output"}
    write_json_atomic(path, {"results": rows, "settings": settings, "data": data, "environment": environment()})


def parse() -> argparse.Namespace:
    parser = cli.Parser(prog="python -m hybrid.evaluate", description=__doc__)
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="a run, a checkpoint or a saved model")
    parser.add_argument("--block-size", type=int, nargs="+", metavar="B", help="default: as it was trained")
    parser.add_argument("--data", metavar="CORPUS", help="another corpus than the run's: a name, file, glob or folder")
    parser.add_argument("--revision", metavar="COMMIT", help="of a Hub data set given with --data: 40 digits")
    parser.add_argument(
        "--split", choices=("validation", "train", "all"), help="default: validation; with --data, all documents"
    )
    parser.add_argument("--rows", type=int, default=0, metavar="R", help="rows of text (default: 0, all)")
    parser.add_argument("--draws", type=int, default=4, metavar="D", help="noise draws per row (default: 4)")
    parser.add_argument("--enumerate", action="store_true", help="add the exact any-order likelihood (short blocks)")
    parser.add_argument("--batch-rows", type=int, default=32, metavar="R", help="rows per forward (default: 32)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the noise (default: 0)")
    parser.add_argument("--output", metavar="FILE", help="default: eval.json in the run's folder")
    parser.add_argument("--device", default="auto", metavar="D", help="cpu, cuda, ... (default: auto)")
    parser.add_argument(
        "--precision", default="fp32", choices=("auto", "fp32", "bf16"), help="of the network (default: fp32)"
    )
    arguments = parser.parse_args()
    for name, least in (("draws", 1), ("batch_rows", 1), ("rows", 0)):
        if getattr(arguments, name) < least:
            raise ValueError(f"--{name.replace('_', '-')}: {getattr(arguments, name)} must be at least {least}")
    return arguments


if __name__ == "__main__":
    sys.exit(cli.run(main))
