"""How much of a draft stands, by rule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hybrid.decoding import Sampling, acceptance
from hybrid.decoding.acceptance import RULES, Noise, checked, drafted, probabilities
from hybrid.decoding.sampling import gumbel

PAIRS = {
    "alike": ([0.6, 0.3, 0.1], [0.5, 0.3, 0.2], [0.41, 0.6, 0.873, 0.8, 0.9]),
    "unlike": ([0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [0.16, 0.1, 0.384, 0.2, 0.4]),  # (p - q)+ has three tokens
}


def accepted(p: Tensor, q: Tensor) -> dict[tuple[str, str], float]:
    """How often a draft stands, by rule and noise."""
    return {
        ("match", "gumbel"): float((p * q).sum()),
        ("argmax", "gumbel"): float(p[q.argmax()]),
        # Token i wins in both races if its noise beats that of every j by the larger of the two odds.
        ("shared", "gumbel"): float((1 / torch.maximum(p / p[:, None], q / q[:, None]).sum(1)).sum()),
        # Intervals of the unit line that both give to the same token.
        ("shared", "inverse"): sum(
            max(float(min(b, d) - max(a, c)), 0.0)
            for a, b, c, d in zip(p.cumsum(0) - p, p.cumsum(0), q.cumsum(0) - q, q.cumsum(0), strict=True)
        ),
        ("rejection", "gumbel"): float(torch.minimum(p, q).sum()),
    }


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
def test_the_table_of_acceptance(pair: str) -> None:
    """In closed form, and 20,000 drafts of one token each: how many stand, and the law of what is written, which is p.
    Within five standard deviations, so that each of 80 comparisons alarms falsely with less than 1e-6."""
    p, q, expected = (torch.tensor(values, dtype=torch.float64) for values in PAIRS[pair])
    table, n, vocab = accepted(p, q), 20_000, len(p)
    assert list(table.values()) == pytest.approx(expected.tolist(), abs=5e-4)
    uniforms = torch.rand(3, n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_p, log_q = p.log().expand(n, 2, vocab), q.log().expand(n, 1, vocab)
    is_draft = torch.ones(n, 1, dtype=torch.bool)
    for (rule, noise), share in table.items():
        sampling, uniform = Sampling(noise=noise), Noise(*uniforms)
        draft = drafted(rule, sampling, log_q, uniform)
        tokens, stand = checked(rule, sampling, log_p, log_q, draft, is_draft, uniform)
        assert (stand == 2).double().mean() == pytest.approx(share, abs=5 * 0.5 / n**0.5)
        for column in (0, 1):  # whatever was drafted
            written = tokens[stand > column, column]
            found = torch.bincount(written, minlength=vocab).double() / len(written)
            torch.testing.assert_close(found, p, rtol=0, atol=5 * 0.5 / len(written) ** 0.5)


@pytest.mark.parametrize("setting", [{}, {"temperature": 0.0}, {"top_p": 0.7}, {"top_k": 2, "temperature": 0.5}])
def test_a_draft_of_the_same_law_is_kept_by_rejection_and_by_shared_noise(setting: dict[str, float]) -> None:
    sampling, generator = Sampling(noise="gumbel", **setting), torch.Generator().manual_seed(1)
    p = torch.randn(500, 6, 9, generator=generator, dtype=torch.float64).log_softmax(-1)
    noise = Noise(*torch.rand(3, 500, 6, generator=generator, dtype=torch.float64))
    q, is_draft = p[:, :-1], torch.ones(500, 5, dtype=torch.bool)
    for rule in ("rejection", "shared"):
        draft = drafted(rule, sampling, q, noise)
        tokens, stand = checked(rule, sampling, p, q, draft, is_draft, noise)
        assert (stand == 6).all() and (tokens[:, :5] == draft).all()


def test_noise_that_draft_and_check_share_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, generator, sampling = [], torch.Generator().manual_seed(3), Sampling(noise="gumbel", top_p=0.9)
    monkeypatch.setattr(acceptance, "gumbel", lambda u, vocab: made.append(len(u)) or gumbel(u, vocab))
    p, q = torch.randn(2, 5, 4, 8, generator=generator, dtype=torch.float64).log_softmax(-1)
    noise = Noise(*torch.rand(3, 5, 5, generator=generator, dtype=torch.float64)).behind_the_first()
    draft = drafted("shared", sampling, q[:, :-1], noise)
    tokens, _ = checked("shared", sampling, p, q[:, :-1], draft, torch.ones(5, 3, dtype=torch.bool), noise)
    assert made == [20]
    for law, drawn in ((q, draft), (p, tokens)):
        expected = [sampling.draw(law[:, i], noise.check[:, i]) for i in range(drawn.shape[1])]
        assert torch.equal(drawn, torch.stack(expected, dim=1))


def test_what_top_k_rules_out_is_never_written() -> None:
    sampling, generator = Sampling(top_k=2, noise="gumbel"), torch.Generator().manual_seed(2)
    p, q = torch.randn(2, 400, 4, 8, generator=generator, dtype=torch.float64).log_softmax(-1)
    noise = Noise(*torch.rand(3, 400, 4, generator=generator, dtype=torch.float64))
    for rule in RULES:
        draft, is_draft = drafted(rule, sampling, q[:, :-1], noise), torch.ones(400, 3, dtype=torch.bool)
        tokens, stand = checked(rule, sampling, p, q[:, :-1], draft, is_draft, noise)
        of_token = probabilities(sampling, p).gather(-1, tokens[..., None]).squeeze(-1)
        assert (of_token > 0)[torch.arange(4) < stand[:, None]].all()
