"""Python on the pages runs: what is neither a module of a user's own nor a method of one.

The blocks of a page run one after the other, as in a notebook. Runs that they load are tiny ones under these names.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from documents import BLOCKS, PAGES, Block, importable_examples, name_of

from hybrid.config import load_config
from hybrid.likelihoods import Likelihood
from hybrid.lm import LanguageModel
from hybrid.runs.run import Run

SNIPPETS = [b for b in BLOCKS if b.language in ("python", "py") and not b.module and not b.text.startswith(" ")]
WITH_SNIPPETS = [page for page in PAGES if any(b.page == name_of(page) for b in SNIPPETS)]


@pytest.fixture(scope="session")
def tiny_run(overrides: Callable[[Path], list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps that takes the prompts and lengths of the pages, like the quickstart: byte pairs, few a block.

    Its text is that of the pages, so that the words of their examples are single tokens.
    """
    corpus = tmp_path_factory.mktemp("pages")
    for page in PAGES:
        (corpus / page.name).write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    tokens = [f"data.corpus={corpus}", "data.tokenizer=bpe", "data.seq_len=128", "model.tied_embeddings=true"]
    sizes = ["objective.block_size=4", "trainer.batch_tokens=256", "run.name=like_quickstart", "decoder=entropy"]
    steps = ["trainer.steps=2", "trainer.eval_every=0", "trainer.save_every=2"]
    run = Run.of(load_config(None, [*overrides(tmp_path_factory.mktemp("runs")), *tokens, *sizes, *steps]))
    run.open()
    run.train()
    return run.folder


@pytest.fixture
def _nothing_is_a_likelihood_of_no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    nll = LanguageModel.nll

    def counted(self: LanguageModel, *arguments: Any, **options: Any) -> Likelihood:
        likelihood = nll(self, *arguments, **options)
        assert (likelihood.tokens > 0).all(), "a page shows the likelihood of no tokens"
        return likelihood

    monkeypatch.setattr(LanguageModel, "nll", counted)


@pytest.mark.parametrize("block", SNIPPETS, ids=lambda block: f"{block.page}:{block.line}")
def test_it_compiles(block: Block) -> None:
    compile(block.text, f"{block.page}:{block.line}", "exec")


@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=name_of)
@pytest.mark.usefixtures("any_size_may_be_asked_for", "_nothing_is_a_likelihood_of_no_tokens")
def test_it_runs(page: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "snippet"}
    with importable_examples(tmp_path):
        for block in SNIPPETS:
            if block.page != name_of(page):
                continue
            for run in re.findall(r"[\"'](runs/[\w-]+)", block.text):
                if not Path(run).exists():
                    shutil.copytree(tiny_run, run)
            exec(compile(block.text, f"{block.page}:{block.line}", "exec"), namespace)


def test_there_are_some() -> None:
    """Else the tests of this file would hold for pages without a snippet."""
    assert any("hybrid.load(" in block.text for block in SNIPPETS)
