"""Every command on a page is one that its program accepts, and what it names is there."""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import importlib.util
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from documents import (
    BLOCKS,
    COMMANDS,
    PAGES,
    REPO,
    SHELLS,
    STARTS,
    Block,
    ShellCommand,
    importable_examples,
    name_of,
)  # fmt: skip
from hugging_face_folders import write_folder
from torch.distributed.run import parse_args as parse_torchrun

from hybrid import cli
from hybrid.config import check, import_modules, load_config, parse_options
from hybrid.config.schema import SPECS, groups, known_keys
from hybrid.decoding import DECODERS
from hybrid.evaluation.setting import choose_decoders, choose_likelihoods
from hybrid.options import build
from hybrid.sweep.plan import plan

OTHER_PROGRAMS = (
    "cd", "echo", "export", "git", "lint-imports", "pyright", "pytest", "ruff", "source", "tensorboard",
)  # fmt: skip
"""Programs of others, whose arguments are their own affair."""

NO_KEYS = {"eval.json", "model.json", "model.safetensors", "data.validation", "data.entropy_per_token"}
"""What reads like a key and is a file, or stands in one."""

RUNS_OF_OPTIONS = ("--checkpoint", "--judge", "--planner", "--runs")
RUNS_OF_SETTINGS = ("objective.teacher", "trainer.init_from", "trainer.resume")


def program_of(words: tuple[str, ...]) -> tuple[str, list[str]]:
    """Name of the program, and its arguments: `python X`, `python -m X` and `torchrun ... X` are X."""
    first = Path(words[0]).name
    if first == "torchrun":
        inner = parse_torchrun(list(words[1:]))
        return inner.training_script, list(inner.training_script_args)
    if first not in ("python", "python3"):
        return (words[0] if words[0].startswith(".ci/") else first), list(words[1:])
    at = 2 if words[1] == "-m" else 1
    return words[at], list(words[at + 1 :])


def module_of(program: str) -> ModuleType | None:
    """The module of a program of this repository, which has `parse`; None for another's."""
    if program.endswith(".py"):
        spec = importlib.util.spec_from_file_location(f"documented_{Path(program).stem}", REPO / program)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    if not program.startswith("hybrid."):
        return None
    module = importlib.import_module(program)
    return importlib.import_module(f"{program}.__main__") if hasattr(module, "__path__") else module


def parsed(command: ShellCommand) -> argparse.Namespace | None:
    """What the program makes of its arguments; None if it prints its help, or is shown in part: its options exist."""
    program, arguments = program_of(command.words)
    module = module_of(program)
    assert module is not None
    parsers: list[argparse.ArgumentParser] = []
    parse = cli.Parser.parse_known_args
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["program", *(word for word in arguments if word != "...")])
        patch.setattr(cli.Parser, "parse_known_args", lambda self, *a: parsers.append(self) or parse(self, *a))
        if {"--help", "-h"} & set(arguments):
            with pytest.raises(SystemExit) as ended:
                module.parse()
            assert not ended.value.code
            return None
        try:
            return module.parse()
        except ValueError as error:
            if not command.is_inline or not re.search("are required|expected (one|at least one) argument", str(error)):
                raise
    options = {option for parser in parsers for option in parser._option_string_actions}
    assert {word for word in arguments if word.startswith("--")} <= options
    return None


def settings_of(a: argparse.Namespace) -> Iterator[tuple[str | None, list[str]]]:
    """Yield the file and the settings of each configuration that a command works with."""
    if hasattr(a, "overrides"):
        for file in a.config if isinstance(a.config, list) else [a.config]:
            yield file, a.overrides


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is in the checkout, and a model of others where the pages have put one."""
    folder = tmp_path_factory.mktemp("checkout")
    for path in REPO.iterdir():
        if path.name != "models":
            (folder / path.name).symlink_to(path)
    write_folder(folder / "models" / "smollm2", "llama")
    return folder


@pytest.fixture(autouse=True)
def _where_users_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkout: Path) -> Iterator[None]:
    """In the checkout, with the modules of the pages on the path."""
    monkeypatch.chdir(checkout)
    with importable_examples(tmp_path):
        yield


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_is_accepted(command: ShellCommand) -> None:
    program, arguments = program_of(command.words)
    if program.endswith(".py") or program.startswith("hybrid."):
        a = parsed(command)
        if a is not None:
            look_closer(program, a)
    elif program == "pip":
        extras = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for named in re.findall(r"\[(.*?)\]", " ".join(arguments)):
            assert set(named.split(",")) <= set(extras)
    elif program == ".ci/run":
        assert (REPO / program).is_file()
    else:
        assert program in (*OTHER_PROGRAMS, "venv"), "a program that no test knows"


def look_closer(program: str, a: argparse.Namespace) -> None:
    """Build what a command names, short of the model and the data."""
    import_modules(getattr(a, "imports", []), "--imports")
    if program == "hybrid.sweep":
        runs = plan(Path(a.config), a.overrides, Path(a.folder or "runs/sweeps/x")).runs
        assert len(runs) > 1 and not any(without_effect(run.warnings) for run in runs)
        return
    for file, overrides in settings_of(a):
        assert without_effect(check(load_config(file, overrides))) == []
    if program == "generate.py" and a.decoder:
        importlib.import_module("my_decoder")  # the run that is named was trained with it
        build(DECODERS, {"name": a.decoder[0], **parse_options(a.decoder[1:])}, "--decoder")
    if program.startswith("hybrid."):
        choose_decoders(getattr(a, "decoders", []), "--decoders")
        choose_decoders(getattr(a, "orders", []), "--orders")
        choose_likelihoods(getattr(a, "likelihoods", []), "--likelihoods")


def without_effect(warnings: list[str]) -> list[str]:
    """Of what a configuration is warned of: not that it trains another loss than the ELBO, which is often meant."""
    return [warning for warning in warnings if " ELBO" not in warning and " is biased" not in warning]


def test_programs_are_on_the_pages() -> None:
    """Else the tests of this file would hold for pages without a command."""
    programs = {program_of(command.words)[0] for command in COMMANDS}
    assert programs >= {"train.py", "generate.py", "hybrid.evaluate", "hybrid.sweep", "hybrid.report", "hybrid.bench"}
    assert any(Path(command.words[0]).name == "torchrun" for command in COMMANDS)


def test_no_command_hides_in_a_block_of_another_language() -> None:
    starts = re.compile(rf"^\s*(?:\$ )?{STARTS} ", re.MULTILINE)
    hidden = [f"{b.page}:{b.line}" for b in BLOCKS if b.language not in SHELLS and starts.search(b.text)]
    assert hidden == []


def trained() -> Iterator[str]:
    """Yield every model that a command on a page trains or converts, and those of the table in docs/answers.md."""
    for command in COMMANDS:
        program, _ = program_of(command.words)
        if program not in ("train.py", "hybrid.convert", "hybrid.sweep", "hybrid.experiments.objectives"):
            continue
        a: Any = parsed(command)
        if a is None:
            continue
        if program == "train.py":
            config = load_config(a.config, a.overrides)
            yield f"{config.run.folder}/{config.run.name}"
        elif program == "hybrid.convert":
            yield a.folder
        else:
            folder = a.folder or f"runs/sweeps/{Path(a.config).stem}"
            yield folder
            yield f"{folder}/*"
    for row in re.findall(r"^\| (.*?) \|", (REPO / "docs" / "answers.md").read_text(encoding="utf-8"), re.MULTILINE):
        yield from (re.sub(r"-sS$", "-s?", run) for run in re.findall(r"`(runs/[^`]+)`", row))


def named(command: ShellCommand) -> Iterator[str]:
    """Yield every run that a command reads; RUN and ... stand for any."""
    program, _ = program_of(command.words)
    for option in RUNS_OF_OPTIONS:
        yield from (run for run in command.value_of(option) if run not in ("RUN", "..."))
    for word in command.words:
        key, _, value = word.partition("=")
        if key in RUNS_OF_SETTINGS and value not in ("auto", "true", "false", "null"):
            yield value
    if program == "hybrid.report":
        a: Any = parsed(command)
        yield from a.runs if a is not None else ()
    if program == "tensorboard":
        yield from (run for run in command.value_of("--logdir") if run != "runs")


def test_what_is_read_was_written() -> None:
    """What is generated from, evaluated or reported on is a run that another command on the pages has trained."""
    known = set(trained())
    assert len(known) > 10
    unknown = [
        f"{run} in {command}"
        for command in COMMANDS
        for run in named(command)
        if not any(fnmatch.fnmatch(re.sub(r"/checkpoints/.*", "", run.rstrip("/")), pattern) for pattern in known)
    ]
    assert unknown == []


def test_every_config_is_named() -> None:
    text = (REPO / "docs" / "configuration.md").read_text(encoding="utf-8")
    for path in (REPO / "configs").rglob("*.yaml"):
        general = "configs/block_size/B.yaml" if path.parent.name == "block_size" else path.relative_to(REPO).as_posix()
        assert f"`{general}`" in text, path


YAML = [block for block in BLOCKS if block.language == "yaml"]


@pytest.mark.parametrize("block", YAML, ids=lambda block: f"{block.page}:{block.line}")
def test_a_configuration_on_a_page_is_accepted(block: Block, tmp_path: Path) -> None:
    """One of a run as a file of configs/, one of a sweep as a file of configs/sweeps/."""
    shutil.copytree(REPO / "configs", tmp_path / "configs")
    is_sweep = re.search(r"^config:", block.text, re.MULTILINE)
    path = tmp_path / "configs" / ("sweeps/mine.yaml" if is_sweep else "mine.yaml")
    path.write_text(block.text, encoding="utf-8")
    if is_sweep:
        assert len(plan(path, [], tmp_path).runs) > 1
    else:
        assert without_effect(check(load_config(path))) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    """Configurations, and sources by their path in the repository."""
    text = page.read_text(encoding="utf-8")
    paths = re.findall(r"(?<![\w/.])((?:configs|hybrid|tests|docs)/[\w/.-]*\.(?:yaml|py|md|png))\b", text)
    missing = [path for path in paths if not (REPO / path).is_file()]
    assert [path for path in missing if path != "configs/block_size/B.yaml"] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_keys_that_a_page_names_exist(page: Path) -> None:
    """In backquotes, `trainer.steps`; of a key that names an entry of a table also what is behind it."""
    keys = re.compile(rf"(?<![\w./-])((?:{'|'.join(groups())})\.[a-z_]\w*(?:\.\w+)?)")
    code = re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
    named = {key for part in code for key in keys.findall(part)}
    holders = {*known_keys(), "decoder"}
    unknown = {key for key in named if key not in holders and key.rpartition(".")[0] not in {*SPECS, "decoder"}}
    assert unknown - NO_KEYS == set()
