"""`~` and `~user` are written out wherever a path enters, since no shell does so in `key=~/x`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Command

import hybrid
from hybrid.config import load_config
from hybrid.data.config import DataConfig
from hybrid.data.preparing import prepare
from hybrid.evaluation.evaluation_model import load_evaluation_model
from hybrid.options import path_of
from hybrid.sweep.jobs import Job

NOBODY = "~nosuchuser/y"
NO_HOME = r"there is no such home folder; write the whole path"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder; the current folder is another one, which stays empty."""
    folder, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(elsewhere)
    return folder


def test_a_home_folder_is_written_out(home: Path) -> None:
    assert path_of("k", "~/a b") == home / "a b" and path_of("k", "~") == home
    assert path_of("k", Path("~/a")) == home / "a"
    assert path_of("k", "~root/x").is_absolute()
    for as_it_is in ("./~", "a~", "a/~/b", "-"):
        assert str(path_of("k", as_it_is)) == str(Path(as_it_is))
    for unknown in (NOBODY, "~nosuchuser", "~\ud800/a"):
        with pytest.raises(ValueError, match=rf"^k: '~[^:]*: {NO_HOME}"):
            path_of("k", unknown)


KEYS = [
    "run.folder",
    "trainer.init_from",
    "objective.teacher",
    "trainer.resume",
    "data.tokenizer",
    "data.cache_dir",
    "data.corpus",
]


@pytest.mark.parametrize("key", KEYS)
def test_a_home_folder_that_there_is_not_is_refused_by_its_key(
    key: str, command: Command, overrides: Callable[[Path], list[str]], home: Path
) -> None:
    words = [word for word in overrides(home) if not word.startswith(f"{key}=")]
    done = command("train.py", *words, f"{key}={NOBODY}")
    assert done.code == 2 and done.error.startswith(f"error: {key}: '{NOBODY}'"), done.error
    assert not list(Path.cwd().iterdir())


OPTIONS = [
    ("train.py", "--config"),
    ("generate.py", "--checkpoint"),
    ("generate.py", "--checkpoint", "x", "--trace"),
    ("generate.py", "--checkpoint", "x", "--prompt-file"),
    ("generate.py", "--checkpoint", "x", "--planner"),
    ("evaluate", "--checkpoint", "x", "--output"),
    ("evaluate", "--checkpoint", "x", "--decoders", "all", "--judge"),
    ("sweep.__main__", "--config", "x", "--folder"),
    ("report.__main__", "x", "--output"),
    ("bench.__main__", "all", "--json"),
    ("experiments.solving", "--runs", "x", "--runs"),
]


@pytest.mark.parametrize("words", OPTIONS, ids=" ".join)
def test_and_by_its_option(words: tuple[str, ...], command: Command, home: Path) -> None:
    done = command(*words, NOBODY)
    assert done.code == 2 and done.error.startswith(f"error: {words[-1]}: '{NOBODY}': "), done.error


@pytest.mark.slow
def test_everything_of_a_run_may_lie_at_home(
    command: Command, overrides: Callable[[Path], list[str]], home: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained, home / "old")
    own = ("run.folder=", "data.cache_dir=")
    words = [word for word in overrides(home) if not word.startswith(own)]
    words += ["run.folder=~/runs", "data.cache_dir=~/cache", "run.name=new", "trainer.init_from=~/old"]
    assert command("train.py", *words).code == 0
    assert command("train.py", *words, "run.name=other", "trainer.resume=~/runs/new", "trainer.steps=9").code == 0
    assert (home / "runs" / "other" / "checkpoints" / "step-00000009").is_dir() and (home / "cache").is_dir()
    to = ("--max-new-tokens", "2", "--trace", "~/page.html")
    assert command("generate.py", "--checkpoint", "~/runs/new", "--prompt", "a", *to).code == 0
    few = ("--rows", "1", "--draws", "1", "--output", "~/e.json")
    assert command("evaluate", "--checkpoint", "~/runs/new", *few).code == 0
    assert command("report.__main__", "~/runs/new", "--output", "~/report").code == 0
    (home / "sweep.yaml").write_text("config: ~/runs/new/config.yaml\ngrid: {run.seed: [0, 1]}\n")
    (home / "based.yaml").write_text("base: ~/runs/new/config.yaml\n")
    assert load_config("~/based.yaml", checked=False).run.name == "new"
    jobs: list[Job] = []
    monkeypatch.setattr("hybrid.sweep.jobs.work", lambda given, slots, done: jobs.extend(given))
    command("sweep.__main__", "--config", "~/sweep.yaml", "--folder", "~/sweeps")
    assert [job.log for job in jobs] == [home / "sweeps" / f"seed-{seed}.log" for seed in (0, 1)]
    hybrid.load("~/runs/new").save("~/saved")
    assert load_evaluation_model("~/saved").about["path"] == str(home / "saved")
    for name in ("page.html", "e.json", "report/index.html", "sweeps/seed-1.yaml", "saved/model.safetensors"):
        assert (home / name).is_file(), name
    assert not list(Path.cwd().iterdir())


def test_a_tokenizer_and_a_corpus_may_lie_at_home(home: Path) -> None:
    from hybrid.data.tokenizers import SubwordTokenizer

    (home / "texts").mkdir()
    for number in range(40):
        (home / "texts" / f"{number}.txt").write_text(f"text {number} of many words, {number * 7} of them " * 20)
    SubwordTokenizer.train(["text of many words"], 260).save(home / "bpe")
    data = DataConfig(corpus="~/texts", tokenizer="~/bpe/tokenizer.json", cache_dir="~/cache", seq_len=16)
    assert prepare(data).tokenizer.vocab_size == 260
    with pytest.raises(ValueError, match=rf"^data.tokenizer: '{NOBODY}': {NO_HOME}"):
        SubwordTokenizer.from_file(NOBODY)


def test_no_run_is_named_like_a_home_folder(home: Path) -> None:
    for name in ("~", "~/a", "a/~", "~b"):
        with pytest.raises(ValueError, match=r"^run.name: '.*' does not name a folder inside run.folder"):
            load_config(None, [f"run.name={name}"])
    assert load_config(None, ["run.name=a~"]).run.name == "a~"
