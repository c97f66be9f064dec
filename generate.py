"""Generate text from a trained model.

    python generate.py --checkpoint runs/quickstart --prompt "Return the"
    python generate.py --checkpoint runs/quickstart --block-size 16 --decoder confidence steps=4
    python generate.py --checkpoint runs/quickstart --decoder mask_predict --trace unmasking.html
    python generate.py --checkpoint runs/talks --chat --system "Answer in one word."
    python generate.py --checkpoint runs/quickstart --infill --prompt "Return <gap:6> list." --block-size 32
    echo "The default is" | python generate.py --checkpoint runs/quickstart --prompt - --num-samples 3 --json

Text goes to stdout, statistics to stderr. On a terminal the blocks fill in live. Texts that --ignore-end-of-text joins
have <|endoftext|> between them.

Prompts are UTF-8. Of a file or of standard input a byte order mark at the start is dropped, as in training, and one
line end at the end (LF or CRLF), which editors and shells add; everything else stays as it is.

With --chat one types a message a line. Ctrl-C stops a reply; /quit or Ctrl-D ends. When the context is full, the oldest
messages are forgotten, which is said.

JSON: prompt (or messages), texts (behind the prompt; with --infill the whole, and `filled` has the gaps of each),
finish_reasons of each text (length, end_of_text, stop), tokens (those of the texts), forwards, seconds, law
(autoregressive, or blocks of B), seed; of speculation rounds_by_tokens_kept (how many wrote 0, 1, 2, ... tokens).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid import cli
from hybrid.options import shown
from hybrid.text.asking import add_asking, check_asking, read_asked

if TYPE_CHECKING:
    import torch

    from hybrid.decoding import GenerationConfig
    from hybrid.decoding.engine import Engine
    from hybrid.distributed import Ranks
    from hybrid.lm import LanguageModel
    from hybrid.text.console import Console, Texts

MAX_SAMPLES = 1_000_000
"""Of one command; their row keys are all made before the first text."""


def main() -> int:
    arguments = parse()
    prompt = read_asked(arguments)
    from hybrid.config import import_modules  # late, so that --help is quick
    from hybrid.device import default_precision, resolve_device
    from hybrid.distributed import Ranks, joined

    import_modules(arguments.imports, "--imports")
    device = resolve_device(arguments.device, Ranks.from_environment(), "--device")
    arguments.precision = arguments.precision or default_precision(device, arguments.dtype)
    with joined(device) as ranks:
        generate(arguments, prompt, device, ranks)
    return 0


def generate(arguments: argparse.Namespace, prompt: str, device: torch.device, ranks: Ranks) -> None:
    """Each rank writes a share of the samples; the first prints them."""
    from hybrid.lm import load
    from hybrid.text.console import Console, Texts
    from hybrid.text.infill import gaps_of
    from hybrid.text.trace import Trace, check_path, write_page

    page = None if arguments.trace is None else Path(arguments.trace)
    if page is not None:
        if ranks.world > 1:
            raise ValueError(f"--trace: a page is written by one process, not by {ranks.world}; start without torchrun")
        check_path(page)
    lm = load(arguments.checkpoint, str(device), arguments.precision, arguments.dtype)
    if arguments.verbose and ranks.is_main:
        from hybrid.evaluation.sentence import likelihood_of_a_sentence

        print(likelihood_of_a_sentence(lm), file=sys.stderr)
    config = config_of(arguments, lm)
    if arguments.chat:
        converse(arguments, lm, config, ranks)
        return
    ids = prompt_ids(arguments, lm, prompt)
    engine = lm.engine(config=config, prompts=[ids])
    if arguments.messages is not None:
        engine = replace(engine, document_mask=False)  # a conversation is one document
    new = n_new_tokens(arguments, lm, ids)
    live = sys.stdout.isatty() and not arguments.json and ranks.world == 1
    gaps = gaps_of(ids, lm.mask_token_id)
    typed = prompt if arguments.messages is None else ""
    console = Console(
        lm.tokenizer, lm.mask_token_id, typed, arguments.stop, live, gaps=gaps, ends=lm.model.end_token_ids
    )
    trace = Trace(engine)
    parts: list[Texts] = []
    try:
        for row_keys in batches_of_keys(arguments, ids, ranks):
            states = (engine if page is None else trace).stream([ids] * len(row_keys), new, row_keys)
            parts.append(console.follow(states, len(row_keys)))
        generation = Texts.one_after_another(parts).of_all(ranks)
        if ranks.is_main:
            show(generation, arguments, prompt, console, engine)
    finally:  # whatever stdout says: it may be full, or nobody reads it any more
        if page is not None and trace.texts:
            facts = facts_of(arguments.checkpoint, config, engine.block_size, Texts.one_after_another(parts))
            write_page(page, trace, lm.tokenizer, {**facts, "law": engine.law})
            print(f"wrote {page}", file=sys.stderr)


def converse(arguments: argparse.Namespace, lm: LanguageModel, config: GenerationConfig, ranks: Ranks) -> None:
    """Talk to the model until the user has had enough."""
    from hybrid.text.chat import ChatPrompts, ChatSession, typed

    if ranks.world > 1:
        raise ValueError(f"--chat: one process talks, not {ranks.world}; start without torchrun")
    prompts = ChatPrompts.of(lm)
    engine = replace(lm.engine(config=config), document_mask=False)  # a conversation is one document
    session = ChatSession(engine, prompts, arguments.max_new_tokens, arguments.stop, sys.stdin.isatty())
    print(session.converse(typed(sys.stdin), arguments.system).summary(engine.law_of_two), file=sys.stderr)


def show(generation: Texts, arguments: argparse.Namespace, prompt: str, console: Console, engine: Engine) -> None:
    """Texts on stdout, unless they stand there already; figures on stderr."""
    from hybrid.text.console import BETWEEN

    if arguments.json:
        asked = {"prompt": prompt} if arguments.messages is None else {"messages": json.loads(prompt)}
        told: dict[str, object] = {**asked, "texts": generation.texts}
        if console.gaps:
            told["filled"] = generation.filled
        told |= {"finish_reasons": generation.finish_reasons, **generation.statistics(), "law": engine.law}
        told["seed"] = engine.config.seed
        print(json.dumps(told), flush=True)
    elif not console.live:
        print(BETWEEN.join(console.prompt + text for text in generation.texts), flush=True)
    print(generation.summary(engine.law_of_two), file=sys.stderr)


def prompt_ids(arguments: argparse.Namespace, lm: LanguageModel, prompt: str) -> list[int]:
    """The prompt's tokens, MASK where it has gaps."""
    from hybrid.text.chat import ChatPrompts
    from hybrid.text.infill import ids_with_gaps

    if arguments.messages is not None:
        return ChatPrompts.of(lm)(json.loads(prompt))
    if not arguments.infill:
        return lm.tokenizer.encode(prompt)
    return ids_with_gaps(prompt, lm.tokenizer, lm.mask_token_id, lm.config.data.seq_len)


def config_of(arguments: argparse.Namespace, lm: LanguageModel) -> GenerationConfig:
    """The options that were given, else the decoder of the run and the defaults of `GenerationConfig`."""
    from dataclasses import fields

    from hybrid.config import parse_options
    from hybrid.decoding import GenerationConfig

    given = {f.name: value for f in fields(GenerationConfig) if (value := getattr(arguments, f.name)) is not None}
    name, *options = arguments.decoder or [""]
    given["decoder"] = {"name": name, **parse_options(options)} if arguments.decoder else lm.config.decoder
    return GenerationConfig(**given)


def n_new_tokens(arguments: argparse.Namespace, lm: LanguageModel, ids: list[int]) -> int:
    """Tokens behind the prompt: as asked for, else all that the context holds, or none where gaps are to be filled."""
    room = lm.config.data.seq_len - len(ids)
    if arguments.max_new_tokens is not None:
        return arguments.max_new_tokens
    if arguments.infill:
        return 0
    if arguments.slide:
        raise ValueError("--slide: a context that slides is never full; say when to stop with --max-new-tokens")
    if room <= 0:
        key = "--prompt" if arguments.messages is None else "--messages"
        raise ValueError(
            f"{key}: {len(ids)} tokens fill the context of {lm.config.data.seq_len} (data.seq_len); shorten it, "
            "or let the context slide (--slide --max-new-tokens N)"
        )
    return room


def batches_of_keys(arguments: argparse.Namespace, ids: list[int], ranks: Ranks) -> Iterator[list[int]]:
    """What the randomness of this rank's texts is keyed by, a list per batch. No text depends on its batch, but
    on a GPU for rounding."""
    from hybrid import rng

    row_keys = rng.row_keys([ids] * arguments.num_samples)
    mine = [row_keys[i] for i in ranks.share(len(row_keys))]
    for start in range(0, len(mine), arguments.batch_size):
        yield mine[start : start + arguments.batch_size]


def facts_of(checkpoint: str, config: GenerationConfig, block_size: int, generation: Texts) -> dict[str, object]:
    """What the head of a trace's page says."""
    from hybrid.options import title

    optional = {"top-k": config.top_k, "top-p": config.top_p, "guidance": config.guidance, "planner": config.planner}
    return {
        "model": checkpoint,
        "decoder": title(config.decoder),
        "block size": block_size,
        "temperature": config.temperature,
        **{name: value for name, value in optional.items() if value},
        **({} if config.noise == "inverse" else {"noise": config.noise}),
        "seed": config.seed,
        "forwards": generation.nfe,
        "tokens": generation.n_tokens,
    }


def parse() -> argparse.Namespace:
    """What was typed. Options of `GenerationConfig` that were not given are None: it declares the defaults."""
    parser = cli.Parser(description=__doc__)
    cli.add_model(parser)
    parser.add_argument("--block-size", type=int, metavar="B", help="tokens per block; default: as it was trained")
    add_asking(parser)
    parser.add_argument(
        "--infill", action="store_true",
        help="fill gaps in the prompt, written <gap:N> for N tokens (a backslash before it makes it plain text); a gap "
        "and what is behind it must stand in one block; the default block size is the first trained one with which "
        "they do, and that of --max-new-tokens is 0",
    )  # fmt: skip
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="default: until the context is full")
    parser.add_argument(
        "--decoder", nargs="+", metavar=("NAME", "key=value"),
        help="which positions are revealed when, with options; default: that of the run's config. The names and "
        "options are in `train.py --help`",
    )  # fmt: skip
    parser.add_argument("--planner", metavar="RUN", help="another model that chooses positions (decoder p2)")
    parser.add_argument(
        "--guidance", type=float, metavar="W",
        help="move away from what would be written without the prompt; costs a second forward a step (default: 0, off)",
    )  # fmt: skip
    parser.add_argument("--num-samples", type=int, default=1, metavar="K", help="how many texts (default: 1)")
    parser.add_argument(
        "--batch-size", type=int, default=64, metavar="N",
        help="texts written at a time, which bounds the memory and changes no text (default: 64)",
    )  # fmt: skip
    parser.add_argument("--temperature", type=float, metavar="T", help="0: most probable (default: 1)")
    parser.add_argument("--top-k", type=int, metavar="K", help="sample among the K most probable tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="sample from the smallest set of mass P")
    parser.add_argument(
        "--noise", metavar="NOISE", help="what makes a token of a random number: inverse or gumbel (default: inverse)"
    )
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end a text before TEXT")
    parser.add_argument(
        "--ignore-end-of-text", action="store_false", default=None, dest="stop_at_end",
        help="go on behind an end-of-text token",
    )  # fmt: skip
    parser.add_argument(
        "--latent", metavar="WHEN",
        help="of a model with random numbers in MASK: fresh at every step, keep those of a block's first step, or none "
        "(default: fresh)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, metavar="S", help="of all randomness (default: 0)")
    parser.add_argument(
        "--slide", action="store_true", default=None,
        help="go on beyond the context, with the last tokens in view; needs --max-new-tokens",
    )  # fmt: skip
    parser.add_argument(
        "--no-cache", action="store_false", default=None, dest="cache",
        help="recompute everything: the same text, slowly",
    )  # fmt: skip
    parser.add_argument(
        "--graphs", action=argparse.BooleanOptionalAction, default=None,
        help="record the forwards of a block and replay them (default: on a GPU, with a cache)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object: texts and statistics")
    parser.add_argument("--trace", metavar="FILE.html", help="write a page in which one steps through the unmasking")
    parser.add_argument(
        "--verbose", action="store_true",
        help="say first how likely a plain English sentence is: weights that were loaded wrongly guess",
    )  # fmt: skip
    cli.add_machine(parser)
    return checked(parser.parse_args())


def checked(arguments: argparse.Namespace) -> argparse.Namespace:
    """Refuse numbers that no text could come from, before a model is loaded."""
    if arguments.num_samples < 1:
        raise ValueError(f"--num-samples: {arguments.num_samples} must be at least 1")
    if arguments.num_samples > MAX_SAMPLES:
        raise ValueError(
            f"--num-samples: {shown(arguments.num_samples)} are too many for one command; ask for at most "
            f"{MAX_SAMPLES}, then for more with another --seed"
        )
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size: {shown(arguments.batch_size)} must be at least 1")
    check_asking(arguments)
    if "" in arguments.stop:
        raise ValueError("--stop: '' would stop every text before it starts; give a text")
    return arguments


if __name__ == "__main__":
    sys.exit(cli.run(main))
