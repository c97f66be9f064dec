"""Mixtures of products over a latent: probabilities and the consistency loss, enumerated over all texts."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from hybrid.objectives.mixture import Mixture, consistency

V = 3
BLOCK = torch.tensor([0, 0, 2])  # two tokens of block 0, one of block 2; block 1 has none
TEXTS = torch.tensor(list(itertools.product(range(V), repeat=3)))


def random_mixture(parts: int, seed: int) -> Mixture:
    logits = torch.randn(parts, 3, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Mixture((2 * logits).log_softmax(-1), BLOCK, 3)


def of_parts(law: Mixture) -> Tensor:
    """(M, texts, 3) the probability of each token of each text under each part."""
    return torch.stack([part.exp().gather(1, TEXTS.t()).t() for part in law.log_probs])


def of_blocks(law: Mixture) -> Tensor:
    """(texts, 3) the probability of each block of each text."""
    tokens = of_parts(law)
    return torch.stack([tokens[..., :2].prod(-1).mean(0), torch.ones(len(TEXTS)), tokens[..., 2].mean(0)], dim=1)


def expected_consistency(law: Mixture, student: Mixture) -> Tensor:
    """(3,) by block, over all texts that the parts of `law` draw, one each."""
    mean = torch.zeros(3, dtype=torch.float64)
    for part in of_parts(law):  # the loss is a mean over samples, so each may be enumerated alone
        for text, mass in zip(TEXTS, part.prod(-1), strict=True):
            mean += mass / law.n_parts * consistency(student, text[None], law.log_marginals())
    return mean


def entropy(p: Tensor) -> Tensor:
    return -(p * p.log()).sum(0)


def test_a_mixture_knows_dependence():
    """log p(x) - sum_l log p_l(x_l) of every text, block by block; a single part has none."""
    law = random_mixture(3, 0)
    marginals = of_parts(law).mean(0)
    products = torch.stack([marginals[:, :2].prod(-1), torch.ones(len(TEXTS)), marginals[:, 2]], dim=1)
    for text, expected in zip(TEXTS, (of_blocks(law) / products).log(), strict=True):
        torch.testing.assert_close(law.correlation(text), expected)
        torch.testing.assert_close(random_mixture(1, 0).correlation(text), torch.zeros(3, dtype=torch.float64))


def test_the_control_variate_has_mean_zero():
    """Sampled cross-entropies of the marginals less the exact ones: 0 over the texts that the law draws."""
    law, student = random_mixture(2, 1), random_mixture(3, 2)
    sampled = torch.zeros(3, dtype=torch.float64)
    for part in of_parts(law):
        for text, mass in zip(TEXTS, part.prod(-1), strict=True):
            sampled += mass / 2 * student.by_block(student.log_marginals().gather(1, text[:, None])[:, 0])
    exact = student.by_block((law.log_marginals().exp() * student.log_marginals()).sum(-1))
    torch.testing.assert_close(sampled, exact)


def test_consistency_is_a_divergence_of_laws():
    """Its expectation is KL(q || p) less the total correlation of q: least, and flat, where the student is the law."""
    law, student = random_mixture(2, 1), random_mixture(3, 2)
    first, last = TEXTS[:, 2] == 0, (TEXTS[:, :2] == 0).all(1)  # each text of block 0, and of block 2, once
    q, p = ((of_blocks(m)[first, 0], of_blocks(m)[last, 2]) for m in (law, student))
    marginals = law.log_marginals().exp()
    correlation = entropy(marginals[0]) + entropy(marginals[1]) - entropy(q[0])
    nothing = torch.zeros((), dtype=torch.float64)
    divergence = [(a * (a / b).log()).sum() for a, b in zip(q, p, strict=True)]
    expected = torch.stack([divergence[0] - correlation, nothing, divergence[1]])
    torch.testing.assert_close(expected_consistency(law, student), expected)
    torch.testing.assert_close(expected_consistency(law, law), torch.stack([-correlation, nothing, nothing]))
    logits = law.log_probs.clone().requires_grad_()
    gradient = torch.autograd.grad(
        expected_consistency(law, Mixture(logits.log_softmax(-1), BLOCK, 3)).sum(), logits
    )[0]  # fmt: skip
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))
    assert correlation > 0.01


def test_without_dependence_nothing_is_random():
    """A student of one part: all samples give the same loss, that of the marginals."""
    law, student = random_mixture(2, 1), random_mixture(1, 3)
    losses = torch.stack([consistency(student, text[None], law.log_marginals()) for text in TEXTS])
    torch.testing.assert_close(losses, losses[:1].expand(len(TEXTS), -1))
