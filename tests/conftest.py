"""Shared fixtures: a tiny corpus, a tiny trained run, and the command lines called in this process."""

from __future__ import annotations

import importlib
import importlib.util
import io
import logging
import os
import random
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import pytest
import torch

from hybrid import cli
from hybrid.config import Config, load_config

if TYPE_CHECKING:
    from hybrid.data.batches import PackedTokens
    from hybrid.lm import LanguageModel

ROOT = Path(__file__).parent.parent
WORDS = (
    "the",
    "value",
    "of a",
    "list",
    "is set",
    "by its",
    "name",
    "and",
    "when no",
    "key",
    "exists",
    "error",
    "returns",
)

Configure = Callable[..., Config]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked `thin(n)`, all but n of its cases are slow: those kept are spread evenly over all."""
    cases: dict[tuple[str, str], list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("thin"):
            cases.setdefault((str(item.path), item.name.partition("[")[0]), []).append(item)
    for same in cases.values():
        marker = same[0].get_closest_marker("thin")
        assert marker is not None
        n = min(*marker.args, len(same))
        kept = {round((i + 0.5) * len(same) / n - 0.5) for i in range(n)}
        for number, item in enumerate(same):
            if number not in kept:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _own_cache_and_one_thread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is written into the user's cache; models this small are slower with several threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYBRID_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("HYBRID_TRACEBACK", raising=False)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 small texts."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    for number in range(24):
        lines = [" ".join(rng.choices(WORDS, k=8)).capitalize() + "." for _ in range(8)]
        (folder / f"{number:02d}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def configure(corpus: Path) -> Configure:
    """configure(folder, *overrides) -> the configuration of a run that takes a second, named `tiny`."""

    def make(folder: Path, *overrides: str) -> Config:
        return load_config(None, [*tiny(corpus, folder), *overrides])

    return make


def tiny(corpus: Path, folder: Path) -> list[str]:
    return [
        *("run.name=tiny", f"run.folder={folder}", "run.device=cpu"),
        *(f"data.corpus={corpus}", "data.tokenizer=char", "data.seq_len=32", "data.validation_fraction=0.2"),
        *("model.dim=16", "model.n_layers=1", "model.n_heads=2", "model.hidden_dim=32"),
        *("objective.block_size=[4,1]", "optim.warmup_steps=2", "optim.ema_decay=0.9", "optim.lr=0.01"),
        *("trainer.steps=8", "trainer.batch_tokens=128", "trainer.precision=fp32", "trainer.log_every=2"),
        *("trainer.eval_every=4", "trainer.save_every=4", "eval.rows=4", "eval.draws=2", "eval.sample_tokens=8"),
    ]


@pytest.fixture(scope="session")
def overrides(corpus: Path) -> Callable[[Path], list[str]]:
    """overrides(folder) -> the same configuration as words of a command line."""
    return lambda folder: tiny(corpus, folder)


@pytest.fixture(scope="session")
def trained(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run, trained once. Only read it; `copy_of_trained` is for changing."""
    from hybrid.runs.run import Run

    run = Run.of(configure(tmp_path_factory.mktemp("runs")))
    run.open()
    run.train()
    return run.folder


@pytest.fixture(scope="session")
def lm(trained: Path) -> LanguageModel:
    """The model of `trained`, and `split` its validation split."""
    from hybrid.lm import load

    return load(trained)


@pytest.fixture(scope="session")
def split(lm: LanguageModel) -> PackedTokens:
    from hybrid.data.preparing import prepare

    return prepare(lm.config.data).validation


@pytest.fixture
def any_size_may_be_asked_for() -> Iterator[None]:
    """No warning of a block size that was not trained."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="block_size: .* was not trained")
        yield


@pytest.fixture
def copy_of_trained(trained: Path, tmp_path: Path) -> Path:
    """A copy under tmp_path/tiny, so that run.folder is tmp_path."""
    return shutil.copytree(trained, tmp_path / "tiny")


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that a bad input gets."""
        assert self.code == 2, (self.code, self.err)
        assert "Traceback" not in self.err
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and self.err.splitlines()[-1] == lines[0], self.err
        assert self.out == ""
        return lines[0]


Command = Callable[..., Done]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """command("train.py", word, ..., stdin=b"") runs a script of this repository, or a module of `hybrid`."""
    root, ours = logging.getLogger(), logging.getLogger("hybrid")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    root.handlers = []  # cli sets up logging with force=True, which would close pytest's own

    def call(script: str, *words: object, stdin: bytes = b"") -> Done:
        module = _module(script)
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        with warnings.catch_warnings():
            warnings.filterwarnings("default", message="block_size: ")  # of a size that was not trained: one line
            for key in ("decoder", "noise"):
                warnings.filterwarnings("default", message=f"{key}: ")  # of speculation: one line
            warnings.filterwarnings("default", message=r"data\.")  # of what the data lacks: one line
            try:
                code = cli.run(module.main)
            except SystemExit as exit:
                code = int(exit.code or 0)
        return Done(code, *capsys.readouterr())

    yield call
    root.handlers = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def _module(script: str) -> ModuleType:
    if not script.endswith(".py"):
        return importlib.import_module(f"hybrid.{script}")
    spec = importlib.util.spec_from_file_location(script.removesuffix(".py"), ROOT / script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def environment_of_a_child() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
