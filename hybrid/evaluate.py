"""Evaluate a trained model: likelihoods by block size, decoders by the text that they write, and eval.json.

python -m hybrid.evaluate --checkpoint runs/quickstart
python -m hybrid.evaluate --checkpoint runs/quickstart --block-size 1 4 16 --draws 16
python -m hybrid.evaluate --checkpoint runs/quickstart --data "my/texts/*.txt"
python -m hybrid.evaluate --checkpoint runs/quickstart --rows 32 --orders all
python -m hybrid.evaluate --checkpoint runs/quickstart --rows 32 --decoders margin confidence:steps=4 --judge runs/ar
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid import cli

if TYPE_CHECKING:
    import torch

    from hybrid.data.batches import PackedTokens
    from hybrid.data.preparing import Data
    from hybrid.distributed import Ranks
    from hybrid.evaluation.base import EvaluationModel
    from hybrid.evaluation.scores import Scores
    from hybrid.evaluation.setting import Setting
    from hybrid.likelihoods import LikelihoodMethod
    from hybrid.lm import LanguageModel

CONFIDENT = "confidence:token=best"
"""Among all orders: the default confidence depends on the tokens that it draws, so it has no likelihood."""


def main() -> int:
    arguments = parse()
    from hybrid.config import import_modules  # late, so that --help is quick
    from hybrid.device import default_precision, resolve_device
    from hybrid.distributed import Ranks, joined

    import_modules(arguments.imports, "--imports")
    device = resolve_device(arguments.device, Ranks.from_environment(), "--device")
    arguments.precision = arguments.precision or default_precision(device, arguments.dtype)
    with joined(device) as ranks:
        evaluate(arguments, device, ranks)
    return 0


def evaluate(arguments: argparse.Namespace, device: torch.device, ranks: Ranks) -> None:
    """Evaluate on each rank a share; the first prints and writes."""
    from hybrid.device import precision_context
    from hybrid.evaluation.machine import environment_of
    from hybrid.evaluation.other_text import check_length
    from hybrid.evaluation.scores import Scores
    from hybrid.evaluation.setting import ALL, choose_decoders, choose_likelihoods
    from hybrid.lm import load
    from hybrid.results.environment import conditions

    output = Path(arguments.output) if arguments.output is not None else default_output(arguments.checkpoint)
    refuse_foreign_output(output)
    lm = load(arguments.checkpoint, str(device), arguments.precision, arguments.dtype)
    sizes = block_sizes(lm, arguments)
    check_length(arguments.length, arguments.data, max(*sizes, arguments.prompt_tokens), lm.config.data.seq_len)
    orders = choose_decoders([*arguments.orders, *([CONFIDENT] if ALL in arguments.orders else [])], "--orders")
    decoders = choose_decoders(arguments.decoders, "--decoders", lm.config.model)
    likelihoods = choose_likelihoods(arguments.likelihoods, "--likelihoods")
    generation = prepare_generation(lm, arguments) if decoders else None
    with ranks.first_on_each_machine():
        data, split = find_split(lm, arguments)
    scores = Scores(
        lm, split, precision_context(lm.precision, lm.device),
        rows=arguments.rows, draws=arguments.draws, seed=arguments.seed, batch_rows=arguments.batch_rows, ranks=ranks,
    )  # fmt: skip
    where = conditions(facts := environment_of(lm))
    results = evaluate_likelihoods(scores, sizes, orders, likelihoods, where, arguments)
    if generation is not None:
        results |= evaluate_texts(scores, sizes, decoders, orders, where, *generation)
    if ranks.is_main:
        results["checkpoint"] = lm.origin.checkpoint
        write(output, results | {"data": data.description, "environment": facts}, arguments)
        print(f"wrote {output}", file=sys.stderr)


def evaluate_likelihoods(
    scores: Scores, sizes: Sequence[int], orders: Mapping[str, Any], likelihoods: Mapping[str, LikelihoodMethod],
    where: str, arguments: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    """Print the table of likelihoods, and `where` they were measured; return it as eval.json has it."""
    from hybrid.evaluation.scores import notes, table
    from hybrid.evaluation.setting import ALL

    lines = scores.lines(sizes, arguments.enumerate, orders, ALL in arguments.orders, likelihoods)
    if scores.ranks.is_main:
        latent = arguments.latent or "fresh"
        print("\n".join([table(lines, latent), *notes(lines, latent), where]))
    return {"results": [line.as_json() for line in lines]}


def evaluate_texts(
    scores: Scores, sizes: Sequence[int], decoders: dict[str, Any], orders: Mapping[str, Any], where: str,
    setting: Setting, model: EvaluationModel | None,
) -> dict[str, Any]:  # fmt: skip
    """Print the table of decoders, and `where` they were measured; return it as eval.json has it."""
    from hybrid.evaluation.comparison import Comparison
    from hybrid.evaluation.results import notes, table

    def policy(size: int, label: str, decoder: Any) -> float | None:
        return scores.policy(size, label, decoder) if label in orders else None  # a forward per token: if asked

    compared = Comparison(
        scores.lm, scores.split, setting, model, policy, scores.rows, scores.batch_rows, scores.ranks
    )  # fmt: skip
    lines = compared.lines(sizes, decoders)
    if scores.ranks.is_main:
        has_latent = bool(scores.lm.config.model.latent)
        print("\n".join(["", table(lines), *notes(lines, setting, model, has_latent), where]))
    return {"generation": [line.as_json() for line in lines], "judge": None if model is None else model.about}


def block_sizes(lm: LanguageModel, arguments: argparse.Namespace) -> list[int]:
    """Find those to evaluate.

    Raises:
        ValueError: one that is impossible. One that was not trained is a warning.
    """
    from hybrid.likelihoods.enumerated import MAX_ENUMERATED

    sizes = arguments.block_size or lm.block_sizes
    for size in sizes:
        lm.engine(block_size=size)
    if arguments.enumerate and max(sizes) > MAX_ENUMERATED:
        raise ValueError(
            f"--enumerate: block size {max(sizes)} is too long (at most {MAX_ENUMERATED}); leave it out, or --enumerate"
        )
    return sizes


def find_split(lm: LanguageModel, arguments: argparse.Namespace) -> tuple[Data, PackedTokens]:
    from hybrid.checkpoints.recorded_data import prepare_again
    from hybrid.evaluation.other_text import prepare_text

    if arguments.data is None and lm.origin.importer is not None:
        raise ValueError(
            f"--data: {arguments.checkpoint} was read by the importer {lm.origin.importer}, which knows nothing of its "
            "training data; name a text to score"
        )
    if arguments.data is None:
        way_out = f", or score what is there now: --data {shlex.quote(str(lm.config.data.corpus))} --split validation"
        prepared = prepare_again(lm.config.data, lm.tokenizer, lm.origin.data, way_out)
    else:
        prepared = prepare_text(lm, arguments)
    name = arguments.split or ("validation" if arguments.data is None else "all")
    return prepared, prepared.everything() if name == "all" else getattr(prepared, name)


def prepare_generation(lm: LanguageModel, arguments: argparse.Namespace) -> tuple[Setting, EvaluationModel | None]:
    """Refuse what cannot work before anything takes time."""
    from hybrid.evaluation.setting import setting_for

    require_libraries(arguments)
    setting = setting_for(
        lm.config.data.seq_len, arguments.new_tokens, arguments.prompt_tokens, samples=arguments.samples,
        temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p, seed=arguments.seed,
        latent=arguments.latent or "fresh",
    )  # fmt: skip
    setting.generation.check_latent(lm.config.model.latent)
    if arguments.judge is None:
        return setting, None
    from hybrid.evaluation.evaluation_model import load_evaluation_model

    precision = "bf16" if arguments.precision == "fp16" else arguments.precision  # its weights are float32
    return setting, load_evaluation_model(arguments.judge, str(lm.device), precision, arguments.batch_rows)


def require_libraries(arguments: argparse.Namespace) -> None:
    """Raise a ValueError if what the evaluation needs is not installed."""
    from hybrid.evaluation import METRICS

    if arguments.decoders:
        for metric in METRICS.values():
            if arguments.judge is not None or not metric.needs_evaluation_model:
                metric().check()


def default_output(checkpoint: str) -> Path:
    """eval.json in the folder that was named (of a folder of checkpoints or one of its steps: in their run)."""
    path = Path(checkpoint).absolute()
    run = next((p.parent for p in (path, path.parent) if p.name == "checkpoints"), path)
    return run / "eval.json"


def refuse_foreign_output(output: Path) -> None:
    """Raise a ValueError if the results would replace something else than those of another evaluation."""
    from hybrid.storage.overwriting import has_keys, refuse_overwriting

    keys = ("results", "settings", "data", "environment")
    foreign = "does not hold an evaluation of ours (if it is a damaged one, remove it)"
    refuse_overwriting(output, lambda path: has_keys(path, keys), foreign)


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Say what the results depend on, as eval.json has it: some only where they are given."""
    optional = ("imports", "likelihoods", "dtype", "length", "latent")
    return {key: value for key, value in vars(arguments).items() if key != "output" and (value or key not in optional)}


def write(path: Path, results: dict[str, Any], arguments: argparse.Namespace) -> None:
    from hybrid.storage.atomic import write_json_atomic

    refuse_foreign_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, {**results, "settings": settings_of(arguments)})


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse `words`; None: the command line."""
    parser = cli.Parser(prog="python -m hybrid.evaluate", description=__doc__, add_help=False)
    more = "show this, the likelihoods and the metrics, with those of an --imports that stands before it"
    parser.add_argument("-h", "--help", action=_Help, nargs=0, default=argparse.SUPPRESS, help=more)
    cli.add_model(parser)
    parser.add_argument("--block-size", type=int, nargs="+", metavar="B", help="default: those it was trained for")
    parser.add_argument("--data", metavar="CORPUS", help="another corpus than the run's: a name, file, glob or folder")
    parser.add_argument("--format", default="auto", metavar="F", help="of the files of --data: as in data.format")
    parser.add_argument("--revision", metavar="COMMIT", help="commit of a Hub data set given with --data: 40 digits")
    parser.add_argument("--length", type=int, metavar="N", help="tokens of a row of --data (default: the context)")
    parser.add_argument("--split", choices=("validation", "train", "all"), help="default: validation; of --data, all")
    parser.add_argument("--rows", type=int, default=0, metavar="R", help="rows of text to read (default: 0, all)")
    parser.add_argument("--draws", type=int, default=4, metavar="D", help="noise draws per row (default: 4)")
    parser.add_argument("--enumerate", action="store_true", help="add the exact any-order likelihood (short blocks)")
    parser.add_argument(
        "--orders", nargs="+", default=[], metavar="NAME[:key=value,...]",
        help="add the likelihood of each decoder's order; all: of every decoder that has one, of random orders and of "
        "the best order (short blocks)",
    )  # fmt: skip
    parser.add_argument(
        "--likelihoods", nargs="+", default=[], metavar="NAME[:key=value,...]", help="add likelihoods, listed below",
    )  # fmt: skip
    parser.add_argument("--batch-rows", type=int, default=32, metavar="R", help="rows per forward (default: 32)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the noise and of the texts (default: 0)")
    parser.add_argument("--output", metavar="FILE", help="write JSON there (default: eval.json in the run's folder)")
    cli.add_machine(parser)
    of_texts = _add_generation(parser)
    arguments = parser.parse_args(words)
    for name, least in (("draws", 1), ("batch_rows", 1), ("rows", 0), ("samples", 1)):
        if getattr(arguments, name) < least:
            raise ValueError(f"--{name.replace('_', '-')}: {getattr(arguments, name)} must be at least {least}")
    for name in of_texts:
        if not arguments.decoders and getattr(arguments, name) != parser.get_default(name):
            raise ValueError(f"--{name.replace('_', '-')}: has no effect without --decoders; add --decoders all")
    return arguments


class _Help(argparse.Action):
    """Print the options and the entries of both tables, those of modules that `--imports` names before it as well."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        from hybrid.config import describe_table, import_modules
        from hybrid.evaluation import METRICS
        from hybrid.likelihoods import LIKELIHOODS

        import_modules(namespace.imports, "--imports")
        likelihoods = describe_table("likelihoods (--likelihoods)", LIKELIHOODS)
        metrics = describe_table("metrics of generated text (--decoders)", METRICS)
        print(parser.format_help(), likelihoods, metrics, sep="\n")
        parser.exit()


def _add_generation(parser: argparse.ArgumentParser) -> list[str]:
    """Options of generation; returns the names of those that need --decoders."""
    group = parser.add_argument_group("generated text")
    group.add_argument(
        "--decoders", nargs="+", default=[], metavar="NAME[:key=value,...]",
        help="generate with each of these decoders and measure the texts; all: every decoder. Names and options are in "
        "`train.py --help`. For the likelihood of their orders add --orders",
    )  # fmt: skip
    more = [
        group.add_argument(
            "--judge", metavar="FOLDER",
            help="model that reads the texts, for gen_ppl and mauve_like: a run, or a folder with a Hugging Face model",
        ),
        group.add_argument("--samples", type=int, default=64, metavar="N", help="texts per decoder (default: 64)"),
        group.add_argument("--new-tokens", type=int, metavar="N", help="tokens of a text (default: all that fit)"),
        group.add_argument(
            "--prompt-tokens", type=int, default=0, metavar="K",
            help="continue the first K tokens of rows of the split (default: 0, no prompt)",
        ),
        group.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0: most probable (default: 1)"),
        group.add_argument("--top-k", type=int, metavar="K", help="sample among the K most probable tokens"),
        group.add_argument("--top-p", type=float, metavar="P", help="sample from the smallest set of mass P"),
        group.add_argument("--latent", metavar="WHEN", help="of random numbers in MASK: fresh (default), keep or none"),
    ]  # fmt: skip
    return [action.dest for action in more]


if __name__ == "__main__":
    sys.exit(cli.run(main))
