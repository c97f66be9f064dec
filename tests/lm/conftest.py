"""A loaded model of each file's own, since what it has fused must not reach the tests of another, and a text for it."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

import hybrid


@pytest.fixture(scope="module")
def lm(trained: Path) -> hybrid.LanguageModel:
    return hybrid.load(trained)


@pytest.fixture(scope="module")
def tokens(lm: hybrid.LanguageModel) -> Tensor:
    return torch.randint(0, lm.tokenizer.vocab_size, (3, 13), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def joined_and_apart(lm: hybrid.LanguageModel) -> tuple[hybrid.LanguageModel, hybrid.LanguageModel]:
    """A model whose predictions depend much on what it sees, without and with data.document_mask."""
    joined = dataclasses.replace(lm, model=copy.deepcopy(lm.model))
    with torch.no_grad():
        joined.model.embedding.weight.mul_(20)
        joined.model.head_matrix().mul_(20)
    data = dataclasses.replace(lm.config.data, document_mask=True)
    return joined, dataclasses.replace(joined, config=dataclasses.replace(lm.config, data=data))
