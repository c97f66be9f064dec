"""Run tasks of lm-evaluation-harness on a trained model: likelihoods of answers and of texts, and texts until a stop.

python -m hybrid.lm_eval --checkpoint runs/quickstart --block-size 8 --tasks my_task.yaml
python -m hybrid.lm_eval --checkpoint runs/quickstart --block-size 1 --tasks lambada_openai arc_easy --limit 100
python -m hybrid.lm_eval --checkpoint runs/quickstart --tasks my_task.json --decoder entropy steps=4 --output all.json

Tasks are files (YAML or JSON, of the harness's own form) or names of tasks that it has. Most of the latter read data
from the Hub. It needs `pip install 'hybrid[lm-eval]'`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from hybrid import cli
from hybrid.options import nearest, nearest_path, shown

if TYPE_CHECKING:
    from hybrid.evaluation.harness.adapter import HybridLM

ESTIMATORS = {"exact": "exact", "policy": "policy (in the decoder's order)", "bound": "bound (it is at least this)"}
"""What log p is, in words."""

MISSING = "lm-eval is not installed; pip install 'hybrid[lm-eval]'"
log = logging.getLogger(__name__)


def main() -> int:
    arguments = parse()
    from hybrid.config import import_modules  # late, so that --help is quick
    from hybrid.distributed import Ranks

    if (world := Ranks.from_environment().world) > 1:
        raise ValueError(f"hybrid.lm_eval: it runs in one process, not in {world}; start it without torchrun")
    refuse_foreign_output(arguments.output)
    import_modules(arguments.imports, "--imports")
    try:
        import lm_eval  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(MISSING if error.name == "lm_eval" else f"lm-eval: {error}") from None
    manager = find_tasks(arguments.tasks, arguments.include_path)
    model = model_of(arguments)  # which may be missing, before data sets are fetched
    tasks = load_tasks(arguments.tasks, manager)
    warn_of_greedy(model, tasks)
    results = evaluate(model, tasks, manager, arguments)
    show(results)
    if arguments.output is not None:
        write(arguments.output, results, arguments)
    return 0


def find_tasks(words: Sequence[str], include_path: str | None) -> Any:
    """Return the harness's manager, of its own tasks if any is named, and of those of `include_path`.

    Raises:
        ValueError: a file that is not there, an unknown name, or several in a word.
    """
    from lm_eval.tasks import TaskManager

    if joined := next((word for word in words if "," in word and not Path(word).exists()), None):
        raise ValueError(f"--tasks: {shown(joined)}: several are given with blanks between: {joined.replace(',', ' ')}")
    files = [word for word in words if is_file(word)]
    if missing := next((word for word in files if not Path(word).is_file()), None):
        raise ValueError(f"--tasks: {missing} is missing{nearest_path(Path(missing))}")
    manager = TaskManager(include_path=include_path, include_defaults=len(files) < len(words))
    for word in words:
        if word not in files and not manager.match_tasks([word]):
            known = nearest(word, manager.all_tasks)
            raise ValueError(f"--tasks: {shown(word)} is no task of lm-eval{known}, nor the file of one (.yaml, .json)")
    return manager


def load_tasks(words: Sequence[str], manager: Any) -> dict[str, Any]:
    """Load the tasks and groups that `find_tasks` has found.

    Raises:
        ValueError: what the harness cannot read as a task.
    """
    from hybrid.evaluation.harness.mistakes import in_a_line

    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for word in words:
        try:
            found = manager.load([task_file(Path(word))] if is_file(word) else manager.match_tasks([word]))
        except Exception as error:  # whatever a task's settings, its functions or its data set raise
            raise ValueError(f"--tasks: {word}: {in_a_line(error)}") from error
        if twice := sorted(loaded["tasks"].keys() & found["tasks"].keys()):
            raise ValueError(f"--tasks: {word}: the task {twice[0]!r} is there twice; give each a name of its own")
        for kind, named in loaded.items():
            named.update(found[kind])
    return loaded


def is_file(word: str) -> bool:
    return word.endswith((".yaml", ".yml", ".json"))


def task_file(path: Path) -> dict[str, Any]:
    """Read the settings of a task from YAML, in which `!function module.name` names Python beside it, or JSON."""
    from lm_eval.tasks._yaml_loader import load_yaml

    from hybrid.storage.json_files import read_json

    content = read_json(path) if path.suffix == ".json" else load_yaml(path, resolve_func=True)
    if not isinstance(content, dict) or not {"task", "group"} & content.keys():
        raise ValueError("it names no task; give it one, e.g. task: mine")
    return content


def model_of(arguments: argparse.Namespace) -> HybridLM:
    from hybrid.config import parse_options
    from hybrid.evaluation.harness.adapter import HybridLM

    name, *options = arguments.decoder or [""]
    return HybridLM(
        arguments.checkpoint,
        block_size=arguments.block_size,
        decoder={"name": name, **parse_options(options)} if arguments.decoder else None,
        draws=arguments.draws,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        check_greedy=arguments.check_greedy or None,
        device=arguments.device,
        precision=arguments.precision,
        dtype=arguments.dtype,
    )


def warn_of_greedy(model: HybridLM, tasks: Mapping[str, Any]) -> None:
    """Say which tasks ask for what is not known: whether greedy decoding writes a continuation."""
    asking = [name for name, task in tasks["tasks"].items() if task.OUTPUT_TYPE == "loglikelihood"]
    if asking and not model.checks_greedy:
        log.warning(
            "acc of %s counts what greedy decoding writes, which is not checked at block size %d and counts as 0; add "
            "--check-greedy (a forward or more a token)", ", ".join(asking), model.estimator.block_size,
        )  # fmt: skip


def evaluate(
    model: HybridLM, tasks: Mapping[str, Any], manager: Any, arguments: argparse.Namespace
) -> dict[str, Any]:  # fmt: skip
    """Run the harness; with --log-samples each request's answer has its standard error beside it."""
    from lm_eval import evaluator

    from hybrid.config import parse_options
    from hybrid.evaluation.harness.mistakes import mistakes_of_tasks

    inner = {name for names in tasks["group_map"].values() for name in names}
    outer = [task for kind in ("groups", "tasks") for name, task in tasks[kind].items() if name not in inner]
    commit = mock.patch.object(evaluator, "get_git_commit_hash", commit_here)
    with (
        commit,
        _children_end_on_sigterm(),
        mistakes_of_tasks(),
        contextlib.redirect_stdout(sys.stderr),
    ):  # where the harness says what it does
        results = evaluator.simple_evaluate(
            model=model, tasks=outer, task_manager=manager, num_fewshot=arguments.num_fewshot, limit=arguments.limit,
            gen_kwargs=parse_options(arguments.gen_kwargs, "--gen-kwargs") or None, batch_size=model.batch_size,
            log_samples=arguments.log_samples, apply_chat_template=arguments.apply_chat_template,
            system_instruction=arguments.system_instruction,
        )  # fmt: skip
    assert results is not None
    found: dict[str, Any] = dict(results)
    for name, samples in found.get("samples", {}).items():
        if tasks["tasks"][name].OUTPUT_TYPE != "generate_until":
            for sample in samples:
                sample["stderr"] = [model.scores[name][request].stderr for request in sample["arguments"]]
    return found


def commit_here() -> str | None:
    """Return the commit of the working directory as the harness does, but in silence where there is no repository."""
    try:
        told = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()


@contextlib.contextmanager
def _children_end_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end a process at once: the harness ends its bootstrapping processes by it, which are copies of us."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def show(results: Mapping[str, Any]) -> None:
    """Print the harness's tables, and below each what log p was and where it was measured."""
    from lm_eval.utils import make_table

    below = notes(results["config"]["hybrid"])
    print("\n".join([make_table(results), *below]))
    if results.get("groups"):
        print("\n".join(["", make_table(results, "groups"), *below]))


def notes(about: Mapping[str, Any]) -> list[str]:
    from hybrid.results.environment import conditions

    how = about["likelihood"]
    found = [
        f"{task}: log p: {ESTIMATORS[how['estimator']]}, block size {how['block_size']}"
        + (f", draws: {how['draws']}, +- {noise['stderr_per_request']:.3g} nats a request" if "draws" in how else "")
        for task, noise in how["noise"].items()
    ]
    return [*found, conditions(about["environment"])]


def refuse_foreign_output(output: str | None) -> None:
    """Raise a ValueError if the results would replace something else than those of another call."""
    from hybrid.storage.overwriting import has_keys, refuse_overwriting

    if output is not None:
        foreign = "does not hold results of lm-eval"
        refuse_overwriting(Path(output), lambda path: has_keys(path, ("results", "versions", "config")), foreign)


def write(output: str, results: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    from hybrid.storage.atomic import write_json_atomic

    refuse_foreign_output(output)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    write_json_atomic(Path(output), {**results, "settings": settings})
    print(f"wrote {output}", file=sys.stderr)


def parse() -> argparse.Namespace:
    parser = cli.Parser(prog="python -m hybrid.lm_eval", description=__doc__)
    cli.add_model(parser)
    parser.add_argument("--block-size", type=int, metavar="B", help="default: the first that was trained")
    parser.add_argument("--tasks", nargs="+", required=True, metavar="FILE_OR_NAME", help="what to run, one or more")
    parser.add_argument("--include-path", metavar="FOLDER", help="folder with further tasks, to be named in --tasks")
    parser.add_argument("--limit", type=float, metavar="N", help="the first N documents of each task; below 1 a share")
    parser.add_argument("--num-fewshot", type=int, metavar="K", help="examples before each question")
    parser.add_argument(
        "--decoder", nargs="+", metavar=("NAME", "key=value"),
        help="writes the texts, and gives log p if its order is a function of the text; default: the run's decoder "
        "writes, and log p is the bound",
    )  # fmt: skip
    parser.add_argument(
        "--draws", type=number_or_all, default=32, metavar="D",
        help="noise draws of the bound; all: every mask, at block sizes up to 12 (default: 32)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the noise and of the texts (default: 0)")
    parser.add_argument(
        "--batch-size", type=int, default=64, metavar="N",
        help="rows of a forward, of which each draw is one; bounds the memory, and changes no result but by rounding "
        "(default: 64)",
    )  # fmt: skip
    parser.add_argument(
        "--check-greedy", action="store_true",
        help="find out for acc of likelihood tasks whether greedy decoding writes the continuation, by writing it "
        "(always at block size 1)",
    )  # fmt: skip
    parser.add_argument(
        "--gen-kwargs", nargs="+", default=[], metavar="key=value",
        help="replace what tasks say of texts: max_gen_toks, until, do_sample, temperature, top_k, top_p",
    )  # fmt: skip
    parser.add_argument("--apply-chat-template", action="store_true", help="write prompts as conversations")
    parser.add_argument("--system-instruction", metavar="TEXT", help="begins every prompt")
    parser.add_argument("--output", metavar="FILE", help="write all results there, as JSON")
    parser.add_argument("--log-samples", action="store_true", help="with every request and its answer in --output")
    cli.add_machine(parser)
    arguments = parser.parse_args()
    for name, least in (("batch_size", 1), ("num_fewshot", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')}: {value} must be at least {least}")
    if arguments.limit is not None and not arguments.limit > 0:
        raise ValueError(f"--limit: {arguments.limit} must be above 0")
    if arguments.log_samples and arguments.output is None:
        raise ValueError("--log-samples: has no effect without --output; add --output FILE")
    return arguments


def number_or_all(word: str) -> int | str:
    try:
        return word if word == "all" else int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown(word)} must be an integer, or all") from None


if __name__ == "__main__":
    sys.exit(cli.run(main))
