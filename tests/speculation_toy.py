"""Speculation over toy models: prompts, models whose drafts are good or bad, and the laws of their texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import toy_model

from hybrid.decoding.denoiser import Network
from hybrid.decoding.fused_rounds import FusedRounds, Outcome
from hybrid.model import Transformer
from hybrid.model.block_pass import BlockRows, Sight, block_hidden

KINDS = ("next_token", "in_place")
SAME_TEXT = ("match", "argmax", "shared")
PROMPTS = [[1, 2, 3], [], [4, 4, 0, 1, 2], [6, 1], [7, 7], [5, 7]]  # 6 is end of text, 7 is MASK


def speculative(rule: str = "shared", length: int = 4, **more: Any) -> dict[str, Any]:
    return {"name": "speculative", "rule": rule, "length": length, **more}


def indifferent(kind: str) -> Transformer:
    """A model whose law is the same whatever it reads, so that p = q."""
    model = toy_model("causal", kind)
    with torch.no_grad():
        model.embedding.weight.copy_(model.embedding.weight[:1].expand_as(model.embedding.weight).clone())
        model.head_matrix().mul_(0.02)
    return model


def drafting(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]) -> None:
    """Change the hidden states off which drafts are read, in rounds of two forwards and of one."""
    read, check = Network.read_behind, FusedRounds._checked

    def changed(*args: Any) -> tuple[Tensor, Tensor]:
        first, drafts = read(*args)
        return first, change(drafts)

    def changed_branch(*args: Any) -> Outcome:
        found = check(*args)
        return found._replace(hidden=change(found.hidden))

    monkeypatch.setattr(Network, "read_behind", changed)
    monkeypatch.setattr(FusedRounds, "_checked", changed_branch)


def law_at(temperature: float, law: Tensor, vocab: int = 3) -> Tensor:
    """(vocab ** n,) -> the law of the n tokens with each conditional at a temperature."""
    if len(law) == 1:
        return torch.ones_like(law)
    rows = law.view(-1, vocab)
    hot = (rows / rows.sum(-1, keepdim=True)) ** (1 / temperature)
    before = law_at(temperature, rows.sum(-1), vocab)
    return (before[:, None] * hot / hot.sum(-1, keepdim=True)).flatten()


def check_cache(model: Transformer, session: Any) -> None:
    """Write all texts, and compare what the cache holds with a fresh prefill after every round."""
    for state in session.run():
        cache = session.network.cache
        for k, row in enumerate(session.active):
            n, begin = cache.lengths[k], model.config.begin
            assert n == begin + row.start - 1
            if not n:
                continue
            text = torch.tensor([model.begin_token_id] * begin + state.sequences[row.index])[:n]
            fresh, nothing = model.new_cache(1, 40), torch.empty(1, 0, dtype=torch.long)
            with torch.no_grad():
                block_hidden(model, fresh, BlockRows([0], [text], nothing, [0]), Sight(1))
            for own, new in ((cache.keys, fresh.keys), (cache.values, fresh.values)):
                torch.testing.assert_close(own[:, k, :n], new[:, 0, :n], rtol=0, atol=1e-10)
