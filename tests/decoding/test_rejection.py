"""Speculation by rejection: another text of the same law, whatever tokens are ruled out, and in any company."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoding_toy import all_texts, chi_square_alarm, engine, sample_counts
from torch import Tensor
from toy import nll_of, toy_model

from hybrid.decoding import Sampling
from hybrid.decoding.denoiser import Network

REJECTION = {"name": "speculative", "rule": "rejection", "length": 5}
VOCAB, N = 4, 4


def filtered(law: Tensor, sampling: Sampling) -> Tensor:
    """(V^N,) of texts -> the same with each conditional after temperature, top-k and top-p."""
    joint, result = law.view([VOCAB] * N), torch.ones([VOCAB] * N, dtype=torch.float64)
    for i in range(N):
        marginal = joint.sum(tuple(range(i + 1, N))) if i < N - 1 else joint
        logits = sampling.truncate((marginal / marginal.sum(-1, keepdim=True)).log().reshape(-1, VOCAB))
        result = result * logits.softmax(-1).view([VOCAB] * (i + 1) + [1] * (N - i - 1))
    return result.flatten()


@pytest.mark.slow
def test_it_follows_the_law_of_what_is_not_ruled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-square of 2,000 texts of four tokens, three of them drafted or behind a draft; false alarm below 1e-5. Every
    draft has one and the same law, far from that of the text: what is wrong does not average out."""
    model, setting = toy_model("causal", "next_token", vocab=VOCAB, seed=4), {"top_k": 2, "temperature": 1.4}
    read, hidden = Network.read_behind, torch.randn(16, generator=torch.Generator().manual_seed(3)).double() / 20

    def stubborn(*arguments: Any) -> tuple[Tensor, Tensor]:
        first, drafts = read(*arguments)
        return first, hidden.expand_as(drafts)

    monkeypatch.setattr(Network, "read_behind", stubborn)
    law = (-nll_of(model, all_texts(VOCAB, N), 1, "causal").nll).exp()
    expected = filtered(law, Sampling(**setting))
    counts = sample_counts(model, REJECTION, 4, VOCAB, N, n=2000, **setting)
    possible = expected > 0
    assert counts[~possible].sum() == 0 and (~possible).any()
    assert chi_square_alarm(counts[possible], expected[possible]) > 1e-5
    other = filtered(law, Sampling(top_k=2, temperature=1.0))
    assert chi_square_alarm(counts[possible], other[possible]) < 1e-5, "another law is found out"


@pytest.mark.parametrize("kind", ["next_token", "in_place"])
def test_its_texts_are_the_same_alone_and_uncached(kind: str) -> None:
    model = toy_model("causal", kind, seed=1)
    prompts = [[1, 2, 3], [], [4, 4, 0, 1, 2], [6, 1], [1, 2, 3]]
    run = engine(model, 4, REJECTION, seq_len=24, seed=3)
    whole = run.generate(prompts, 13)
    assert whole.tokens[0] != whole.tokens[4], "of equal prompts each has its own random numbers"
    assert [run.generate([prompt], 13).tokens[0] for prompt in prompts[:4]] == whole.tokens[:4]
    assert engine(model, 4, REJECTION, seq_len=24, seed=3, cache=False).generate(prompts, 13).tokens == whole.tokens
    assert list(run.stream(prompts, 13))[-1].tokens == whole.tokens
