"""The door for a corpus: one class in CORPORA, registered by a module that `run.imports` names, nothing else edited."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Command

import hybrid
from hybrid.config import load_config
from hybrid.data import prepare
from hybrid.data.corpora import CORPORA
from hybrid.runs.run import Run

MODULE = '''
from dataclasses import dataclass
from pathlib import Path
import numpy as np
from hybrid.data.corpora import CORPORA, Document, InMemory
from hybrid.options import option

@dataclass(frozen=True)
class Coins:
    """Heads and tails of a fair coin."""

    documents: int = option(64, "how many")
    tosses: int = option(15, "letters of each")

    def identity(self) -> str:
        return repr(self)

    def load(self, folder: Path) -> InMemory:
        tosses = np.random.default_rng(0).integers(2, size=(self.documents, self.tosses))
        return InMemory([Document("".join("HT"[toss] for toss in row)) for row in tosses])

    def entropy(self) -> float:
        return self.tosses * np.log(2)

    def log_prob(self, texts):
        return np.array([-len(text) * np.log(2) for text in texts])

CORPORA["coins"] = Coins
'''


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "my_coins.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    CORPORA.pop("coins", None)
    sys.modules.pop("my_coins", None)


def test_a_corpus_of_ones_own_is_trained_on_cached_and_listed(tmp_path: Path, overrides, command: Command) -> None:
    words = [*overrides(tmp_path), "run.imports=[my_coins]", "data.corpus={name: coins, tosses: 31}"]
    run = Run.of(load_config(None, words))
    assert run.data.description["entropy_per_token"] == pytest.approx(31 * math.log(2) / 32)
    assert run.data.description["corpus"] == {"name": "coins", "tosses": 31}
    run.open()
    run.train()
    assert hybrid.load(run.folder).tokenizer.decode([0, 1]) == "HT"
    assert command("evaluate", "--checkpoint", run.folder, "--rows", 2, "--draws", 1).code == 0
    evaluated = json.loads((run.folder / "eval.json").read_text())["data"]
    assert evaluated["corpus_sha256"] == run.data.description["corpus_sha256"]
    listed = command("train.py", "--help").out
    assert "coins" in listed and "letters of each" in listed and "Heads and tails" in listed


def test_its_options_decide_what_is_cached_and_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def config(corpus: str, *words: str):
        return load_config(None, ["run.imports=[my_coins]", f"data.corpus={corpus}", "data.seq_len=16", *words]).data

    first, other = (prepare(config(corpus)) for corpus in ("coins", "{name: coins, tosses: 20}"))
    monkeypatch.setattr("hybrid.data.preparing.build", lambda *_: pytest.fail("built again"))
    again = prepare(config("{name: coins, tosses: 15}"))
    names = [data.description["fingerprint"] for data in (first, again, other)]
    assert names[0] == names[1] != names[2]
    assert first.train.n_tokens + first.validation.n_tokens == 64 * 16
    with pytest.raises(ValueError, match=r"data\.corpus\.toses: coins has no such option .*did you mean 'tosses'"):
        config("{name: coins, toses: 3}")
    with pytest.raises(ValueError, match=r"data\.corpus: 'coin' .*did you mean 'coins'"):
        prepare(config("coin"))
