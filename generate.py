"""Generate text from a trained model.

    python generate.py --checkpoint runs/quickstart --prompt "Return the "
    python generate.py --checkpoint runs/quickstart --block-size 16 --decoder confidence steps=4
    python generate.py --checkpoint runs/quickstart --decoder mask_predict --trace unmasking.html
    echo "The default is" | python generate.py --checkpoint runs/quickstart --prompt - --num-samples 3 --json

Text goes to stdout, statistics to stderr. On a terminal the blocks fill in live.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid import cli

if TYPE_CHECKING:
    import torch

    from hybrid.console import Texts
    from hybrid.decoding.engine import Engine
    from hybrid.ranks import Ranks


def main() -> int:
    arguments = parse()
    prompt = read_prompt(arguments)
    from hybrid.device import resolve_device  # late, so that --help is quick
    from hybrid.ranks import Ranks, joined

    device = resolve_device(arguments.device, Ranks.from_environment())
    with joined(device) as ranks:
        generate(arguments, prompt, device, ranks)
    return 0


def generate(arguments: argparse.Namespace, prompt: str, device: torch.device, ranks: Ranks) -> None:
    """Each rank writes a share of the samples; the first prints them."""
    from hybrid import counter
    from hybrid.config import parse_options
    from hybrid.console import Console
    from hybrid.lm import load
    from hybrid.options import title
    from hybrid.trace import Trace, check_path, write_page

    page: Path | None = arguments.trace
    if page is not None:
        if ranks.world > 1:
            raise ValueError(f"--trace: a page is written by one process, not by {ranks.world}; start without torchrun")
        check_path(page)
    lm = load(arguments.checkpoint, device=str(device), precision=arguments.precision)
    decoder = lm.config.decoder
    if arguments.decoder:
        decoder = {"name": arguments.decoder[0], **parse_options(arguments.decoder[1:])}
    engine = lm.engine(
        block_size=arguments.block_size, decoder=decoder, temperature=arguments.temperature, top_k=arguments.top_k,
        top_p=arguments.top_p, seed=arguments.seed, cache=not arguments.no_cache,
        stop_at_end=not arguments.ignore_end_of_text, guidance=arguments.guidance, planner=arguments.planner,
        slide=arguments.slide,
    )  # fmt: skip
    ids = lm.tokenizer.encode(prompt)
    room = lm.config.data.seq_len - len(ids)
    new = arguments.max_new_tokens
    if new is None:
        if arguments.slide:
            raise ValueError("--slide: a context that slides is never full; say when to stop with --max-new-tokens")
        if room <= 0:
            raise ValueError(
                f"--prompt: {len(ids)} tokens fill the context of {lm.config.data.seq_len} (data.seq_len); shorten it"
            )
        new = room
    live = sys.stdout.isatty() and not arguments.json and ranks.world == 1
    console = Console(lm.tokenizer, lm.mask_token_id, prompt, arguments.stop, live)
    keys = counter.row_keys([ids] * arguments.num_samples)
    mine = [keys[i] for i in ranks.share(len(keys))]
    trace = Trace(engine)
    steps = (engine if page is None else trace).stream([ids] * len(mine), new, mine)
    generation = console.follow(steps, len(mine)).of_all(ranks)
    if not ranks.is_main:
        return
    if arguments.json:
        print(json.dumps({"prompt": prompt, "texts": generation.texts, **generation.statistics(), "seed": engine.seed}))
    elif not console.live:
        print("\n---\n".join(prompt + text for text in generation.texts))
    print(generation.summary(), file=sys.stderr)
    if page is not None:
        write_page(page, trace, lm.tokenizer, facts_of(arguments, engine, title(decoder), generation))
        print(f"wrote {page}", file=sys.stderr)


def facts_of(arguments: argparse.Namespace, engine: Engine, decoder: str, generation: Texts) -> dict[str, object]:
    """What the head of a trace's page says."""
    optional = {name: getattr(arguments, name.replace("-", "_")) for name in ("top-k", "top-p", "guidance", "planner")}
    return {
        "model": arguments.checkpoint,
        "decoder": decoder,
        "block size": engine.block_size,
        "temperature": arguments.temperature,
        **{name: value for name, value in optional.items() if value},
        "seed": engine.seed,
        "forwards": generation.nfe,
        "tokens": generation.n_tokens,
    }


def read_prompt(arguments: argparse.Namespace) -> str:
    """From --prompt (`-`: standard input) or --prompt-file."""
    if arguments.prompt_file is not None:
        if arguments.prompt_file == "-":
            return read_stdin()
        try:
            return Path(arguments.prompt_file).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"--prompt-file: {arguments.prompt_file} is not UTF-8 (byte {error.start}); convert it"
            ) from None
    return read_stdin() if arguments.prompt == "-" else arguments.prompt


def read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompt: standard input is not UTF-8 (byte {error.start}); convert it") from None


def parse() -> argparse.Namespace:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="a run, a checkpoint or a saved model")
    parser.add_argument("--block-size", type=int, metavar="B", help="tokens per block; default: as it was trained")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", default="", metavar="TEXT", help="text to continue; - reads standard input")
    source.add_argument("--prompt-file", metavar="FILE", help="file with the text to continue")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="default: until the context is full")
    parser.add_argument(
        "--decoder", nargs="+", metavar=("NAME", "key=value"),
        help="which positions are revealed when, with options; default: that of the run's config. The names and "
        "options are in `train.py --help`",
    )  # fmt: skip
    parser.add_argument("--planner", metavar="RUN", help="another model that chooses positions (decoder p2)")
    parser.add_argument(
        "--guidance", type=float, default=0.0, metavar="W",
        help="move away from what would be written without the prompt, at a second forward (default: 0, off)",
    )  # fmt: skip
    parser.add_argument("--num-samples", type=int, default=1, metavar="K", help="how many texts (default: 1)")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0: most probable (default: 1)")
    parser.add_argument("--top-k", type=int, metavar="K", help="sample among the K most probable tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="sample from the smallest set of mass P")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end a text before TEXT")
    parser.add_argument("--ignore-end-of-text", action="store_true", help="go on behind an end-of-text token")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of all randomness (default: 0)")
    parser.add_argument("--slide", action="store_true", help="go on beyond the context, with the last tokens in view")
    parser.add_argument("--no-cache", action="store_true", help="recompute everything: the same text, slowly")
    parser.add_argument("--json", action="store_true", help="print one JSON object: texts and statistics")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE.html", help="write a page in which one steps through the unmasking"
    )
    parser.add_argument("--device", default="auto", metavar="D", help="cpu, cuda, ... (default: auto)")
    parser.add_argument(
        "--precision", default="fp32", choices=("auto", "fp32", "bf16"), help="of the network (default: fp32)"
    )
    arguments = parser.parse_args()
    if arguments.num_samples < 1:
        raise ValueError(f"--num-samples: {arguments.num_samples} must be at least 1")
    if "" in arguments.stop:
        raise ValueError("--stop: '' would stop every text before it starts; give a text")
    return arguments


if __name__ == "__main__":
    sys.exit(cli.run(main))
