"""From a distribution to a token."""

import math

import pytest
import torch
from decoding_toy import chi_square_alarm

from hybrid.decoding import Sampling
from hybrid.decoding.sampling import gumbel


def test_proposals_follow_the_distribution():
    """Chi-square of 50,000 tokens, false alarm below 1e-5; temperature, top-k and nucleus at once."""
    log_probs = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05]).log()
    u = torch.rand(50_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for sampling, weights in [
        (Sampling(), [0.4, 0.3, 0.15, 0.1, 0.05]),
        (Sampling(temperature=0.5), [0.16, 0.09, 0.0225, 0.01, 0.0025]),
        (Sampling(top_k=2), [0.4, 0.3, 0, 0, 0]),
        (Sampling(top_p=0.71), [0.4, 0.3, 0.15, 0, 0]),
    ]:
        counts = torch.bincount(sampling.draw(log_probs.expand(50_000, 5), u), minlength=5)
        probabilities = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        assert (counts[probabilities == 0] == 0).all()
        keep = probabilities > 0
        assert chi_square_alarm(counts[keep], probabilities[keep]) > 1e-5


def by_hand(probabilities: list[float], temperature: float, top_k: int | None, top_p: float | None) -> list[float]:
    """Temperature, then the k most probable, then the fewest of these whose share is at least p."""
    left = {token: p ** (1 / temperature) for token, p in enumerate(probabilities)}
    best = sorted(left, key=lambda token: -left[token])[:top_k]
    total, mass, kept = sum(left[token] for token in best), 0.0, []
    for token in best:
        if top_p is None or mass < top_p * total:
            kept.append(token)
        mass += left[token]
    total = sum(left[token] for token in kept)
    return [left[token] / total if token in kept else 0.0 for token in range(len(probabilities))]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 6, 20])
@pytest.mark.parametrize("top_p", [None, 0.3, 0.75, 1.0])
def test_temperature_top_k_and_top_p_act_one_after_the_other(temperature, top_k, top_p):
    """top_p is a share of what temperature and top_k leave: 7 random distributions of 8 tokens."""
    log_probs = (2 * torch.randn(7, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).log_softmax(-1)
    got = Sampling(temperature=temperature, top_k=top_k, top_p=top_p).truncate(log_probs).softmax(-1)
    expected = [by_hand(row, temperature, top_k, top_p) for row in log_probs.exp().tolist()]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_token_that_crosses_top_p_is_in():
    log_probs = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert Sampling(top_p=0.6).truncate(log_probs).isfinite().tolist() == [[True, True, False]]
    assert Sampling(top_p=0.3).truncate(log_probs).isfinite().tolist() == [[True, False, False]]


def test_temperature_zero_takes_the_best_and_extreme_uniforms_are_safe():
    log_probs = torch.tensor([[0.2, 0.5, 0.3], [0.7, 0.3, 0.0]]).log()
    edge = torch.tensor([1 - 2**-53, 1 - 2**-53], dtype=torch.float64)
    assert Sampling(temperature=0).draw(log_probs, edge).tolist() == [1, 0]
    assert Sampling().draw(log_probs, edge).tolist() == [2, 1], "a token of mass 0 is never drawn"
    assert Sampling().draw(log_probs, torch.zeros(2, dtype=torch.float64)).tolist() == [0, 0]


def test_gumbel_noise_follows_the_same_law_from_the_same_keys():
    """Chi-square of 50,000 tokens, false alarm below 1e-5; one is drawn from two similar distributions more often the
    same than by the inverse of the distribution function: .873 against .80."""
    p, q = (torch.tensor(law, dtype=torch.float64) for law in ([0.6, 0.3, 0.1], [0.5, 0.3, 0.2]))
    u = torch.rand(50_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for noise, agreement in (("gumbel", 0.873), ("inverse", 0.8)):
        one, other = (Sampling(noise=noise).draw(law.log().expand(50_000, 3), u) for law in (p, q))
        assert chi_square_alarm(torch.bincount(one, minlength=3), p) > 1e-5
        assert chi_square_alarm(torch.bincount(other, minlength=3), q) > 1e-5
        assert (one == other).double().mean() == pytest.approx(agreement, abs=0.007)
    cut = Sampling(noise="gumbel", top_k=2, temperature=0.5).draw(p.log().expand(50_000, 3), u)
    assert chi_square_alarm(torch.bincount(cut), torch.tensor([0.8, 0.2], dtype=torch.float64)) > 1e-5
    edges = torch.tensor([0, 1 - 2**-53], dtype=torch.float64)
    assert gumbel(edges, 1000).isfinite().all() and Sampling(noise="gumbel", temperature=0).draw(p[None], u[:1]) == 0


def test_sampling_settings_are_checked():
    for options, message in [
        ({"temperature": -1}, "temperature: -1"),
        ({"temperature": math.nan}, "temperature: nan"),
        ({"top_k": 0}, "top_k: 0"),
        ({"top_p": 0.0}, "top_p: 0.0"),
        ({"top_p": 1.5}, "top_p: 1.5"),
        ({"noise": "gumble"}, "noise: 'gumble' is not one of gumbel, inverse .did you mean 'gumbel'"),
    ]:
        with pytest.raises(ValueError, match=message):
            Sampling(**options)
