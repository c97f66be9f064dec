"""The bound of K steps with random numbers in MASK, against the law of the K-step sampler by enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch
from decoding_toy import all_texts, chi_square_alarm, sample_counts
from torch import Tensor
from toy import latent_model, nll_of, random_tokens, toy_model

from hybrid.model import Transformer
from hybrid.model.two_stream import two_stream_hidden

V, L = 3, 3
SETS = {1: [3], 2: [2, 1], 3: [1, 1, 1]}  # how many tokens `first_hitting steps=K` reveals at each step


def law(model: Transformer, steps: int, nodes: int = 49) -> Tensor:
    """(texts,) probabilities of all texts of one block: over all orders, and over z on a grid, afresh at each step."""
    z = torch.linspace(-6, 6, nodes, dtype=torch.float64)
    weight, texts = (-(z**2) / 2).exp(), all_texts(V, L)
    latent = z.view(1, -1, 1, 1).expand(len(texts), nodes, L, 1)
    total = torch.zeros(len(texts), dtype=torch.float64)
    ends = [0, *itertools.accumulate(SETS[steps])]
    orders = list(itertools.permutations(range(L)))
    for order in orders:
        p = torch.ones(len(texts), dtype=torch.float64)
        for first, last in itertools.pairwise(ends):
            masked = torch.zeros(len(texts), nodes, L, dtype=torch.bool)
            masked[..., list(order[first:])] = True
            log_p = torch.zeros(masked.shape, dtype=model.dtype)
            hidden = two_stream_hidden(model, texts, masked, L, latent=latent)
            of_text = texts[:, None].expand(masked.shape)[masked][:, None]
            log_p[masked] = model.head(hidden).log_softmax(-1).gather(-1, of_text).squeeze(-1)
            product = log_p[..., list(order[first:last])].double().sum(-1).exp()  # (texts, nodes)
            p = p * (product @ weight) / weight.sum()
        total += p / len(orders)
    return total


def small_model(**options) -> Transformer:
    return latent_model(vocab=V, latent=1, latent_per="block", n_layers=1, seed=3, **options)


@pytest.mark.parametrize("steps", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_it_is_above_the_likelihood_of_the_sampler(steps: int) -> None:
    """Of every text, to 6 standard errors; in the mean by less, the more draws of z there are."""
    model, texts = small_model(), all_texts(V, L)
    with torch.no_grad():
        p = law(model, steps)
        few, many = (
            nll_of(model, texts, L, {"name": "latent_bound", "steps": steps, "latents": m}, draws=12) for m in (2, 12)
        )
    assert float(p.sum()) == pytest.approx(1)
    for bound in (few, many):
        assert (bound.nll > -p.log() - 6 * bound.stderr).all()
    entropy = -(p * p.log()).sum()
    assert (few.nll * p).sum() > (many.nll * p).sum() > entropy
    assert few.method == f"latent_bound:steps={steps},latents=2"


@pytest.mark.slow
def test_in_one_step_it_comes_down_to_it() -> None:
    """There is one set, so that many draws of z leave nothing between them; and the grid of z is fine enough."""
    model, texts = small_model(), all_texts(V, L)
    with torch.no_grad():
        p = law(model, 1)
        torch.testing.assert_close(p, law(model, 1, 41), rtol=1e-4, atol=1e-7)
        bound = nll_of(model, texts, L, {"name": "latent_bound", "steps": 1, "latents": 400}, draws=4)
    torch.testing.assert_close(bound.nll, -p.log(), rtol=0, atol=0.15)
    assert ((bound.nll + p.log()) * p).sum().abs() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2])
def test_generation_has_that_law_with_fresh_numbers_alone(steps: int) -> None:
    """False-alarm probability 1e-4. That of kept ones is another one, and so is that of none."""
    model, spec = small_model(dtype=torch.float32), {"name": "first_hitting", "steps": steps}
    with torch.no_grad():
        p = law(model, steps)
    alarm = {
        latent: chi_square_alarm(sample_counts(model, spec, L, V, L, n=3000, latent=latent), p)
        for latent in ("fresh", "keep", "none")
    }
    assert alarm["fresh"] > 1e-4 > alarm["none"]
    assert (alarm["keep"] > 1e-4) == (steps == 1), "in one step nothing is kept"


def test_without_a_latent_it_is_the_bound_of_several_tokens_a_step() -> None:
    """At one token a step the ELBO; with all of a block at once the cross-entropies of an empty block."""
    model, tokens = toy_model(), random_tokens(3, 10)
    with torch.no_grad():
        one, other = (nll_of(model, tokens, 5, {"name": "latent_bound", "steps": 1, "latents": m}).nll for m in (1, 9))
        every = nll_of(model, tokens, 2, {"name": "latent_bound", "steps": 2, "latents": 1}, draws=64)
        elbo = nll_of(model, tokens, 2, draws="all").nll
        hidden = two_stream_hidden(model, tokens, torch.ones(3, 1, 10, dtype=torch.bool), 5)
        at_once = -model.head(hidden).log_softmax(-1).gather(-1, tokens.flatten()[:, None]).view(3, 10).sum(1)
    assert torch.equal(one, other)
    torch.testing.assert_close(one, at_once)
    assert ((every.nll - elbo).abs() < 5 * every.stderr).all()


def test_it_needs_its_steps_and_its_draws() -> None:
    with pytest.raises(ValueError, match=r"method: latent_bound needs its option 'steps'"):
        nll_of(toy_model(), random_tokens(1, 4), 2, "latent_bound")
    with pytest.raises(ValueError, match="latents"):
        nll_of(toy_model(), random_tokens(1, 4), 2, {"name": "latent_bound", "steps": 2, "latents": 0})
