"""From a distribution to a token."""

import math

import pytest
import torch
from decoding_toy import chi_square_alarm

from hybrid.decoding import Sampling


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
        counts = torch.bincount(sampling.propose(log_probs.expand(50_000, 5), u), minlength=5)
        probabilities = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        assert (counts[probabilities == 0] == 0).all()
        keep = probabilities > 0
        assert chi_square_alarm(counts[keep], probabilities[keep]) > 1e-5


def test_the_token_that_crosses_top_p_is_in():
    log_probs = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert Sampling(top_p=0.6).truncate(log_probs).isfinite().tolist() == [[True, True, False]]
    assert Sampling(top_p=0.3).truncate(log_probs).isfinite().tolist() == [[True, False, False]]


def test_temperature_zero_takes_the_best_and_extreme_uniforms_are_safe():
    log_probs = torch.tensor([[0.2, 0.5, 0.3], [0.7, 0.3, 0.0]]).log()
    edge = torch.tensor([1 - 2**-53, 1 - 2**-53], dtype=torch.float64)
    assert Sampling(temperature=0).propose(log_probs, edge).tolist() == [1, 0]
    assert Sampling().propose(log_probs, edge).tolist() == [2, 1], "a token of mass 0 is never drawn"
    assert Sampling().propose(log_probs, torch.zeros(2, dtype=torch.float64)).tolist() == [0, 0]


def test_sampling_settings_are_checked():
    for options, message in [
        ({"temperature": -1}, "temperature: -1"),
        ({"temperature": math.nan}, "temperature: nan"),
        ({"top_k": 0}, "top_k: 0"),
        ({"top_p": 0.0}, "top_p: 0.0"),
        ({"top_p": 1.5}, "top_p: 1.5"),
    ]:
        with pytest.raises(ValueError, match=message):
            Sampling(**options)
