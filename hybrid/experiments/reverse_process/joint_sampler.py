"""Three ways to take one step of the reverse process, and the exact law of what rounding does to the first.

A masked token with probabilities p is revealed with probability q. The *joint* sampler lets MASK compete: one argmax of
log pi + G over tokens (pi_k = q p_k) and MASK (pi = 1 - q), G = -log(-log u) of uniforms u. The *decoupled* sampler
decides first whether to reveal and then what. In exact arithmetic they are one law. A uniform of n bits is at most
1 - 2^-n, so that G is at most n ln 2: 16.6 in float32, which cuts off improbable tokens (Zheng et al. 2409.02908,
section 5). Decoders of this repository are decoupled (hybrid/decoding/sampling.py); the joint sampler is only here.

Shape legend: m draws, l laws (rows of `log_probs`), V vocabulary, k draws that were revealed, c candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hybrid.decoding import Sampling

SMALLEST = 1e-10
"""What a uniform of 0 is taken for, so that its logarithm is finite (public code adds as much to every uniform)."""

HORIZON = 25.0
"""Race time (see `Joint`) by which MASK has arrived, as long as q <= 1 / HORIZON: -log(SMALLEST) / (1 - q) < 24."""

CANDIDATES = 2_000_000
"""Of a chunk of simulated draws; bounds the memory."""

Reveal = Callable[[Tensor, Tensor, float, torch.Generator], tuple[Tensor, Tensor]]
"""(log_probs (l, V), law (m,) the row of each draw, q, generator) -> (draws that are revealed (k,), their tokens)."""


@dataclass(frozen=True)
class Precision:
    """`bits`: uniforms are multiples of 2^-bits (what `torch.rand` gives in this dtype)."""

    dtype: torch.dtype
    bits: int


FLOAT32 = Precision(torch.float32, 24)
FLOAT64 = Precision(torch.float64, 53)


def scores(log_pi: Tensor, uniform: Tensor) -> Tensor:
    """log pi + G, in the dtype of its arguments."""
    return log_pi - torch.log(-torch.log(uniform.clamp(min=SMALLEST)))


def argmax_reveal(log_probs: Tensor, q: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Sample jointly as public code does it: (m, V) and uniforms (m, V + 1) -> as `Reveal`. MASK is category V."""
    mask = log_probs.new_full((len(log_probs), 1), math.log1p(-q) if q < 1 else -math.inf)
    winner = scores(torch.cat([log_probs + math.log(q), mask], dim=1), uniform).argmax(-1)
    revealed = (winner < log_probs.shape[1]).nonzero().squeeze(1)
    return revealed, winner[revealed]


@dataclass(frozen=True)
class Joint:
    """The joint sampler in some precision, without the uniforms that can't matter where q is small.

    The argmax is a race: category k arrives at time E_k / pi_k, E_k = -log u_k, and the first wins. MASK arrives before
    `HORIZON`, so only tokens with E_k <= HORIZON pi_k have a chance. `candidates` finds these without drawing the rest,
    which is nearly all. Their uniforms are rounded down to the grid (E up) and go through the same arithmetic.
    """

    precision: Precision

    def __call__(self, log_probs: Tensor, law: Tensor, q: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if HORIZON * q > 1:  # more than a candidate per draw: the plain argmax is cheaper, and right for any q
            shape = (len(law), log_probs.shape[1] + 1)
            uniform = torch.rand(shape, generator=generator, dtype=self.precision.dtype)
            return argmax_reveal(log_probs[law].to(self.precision.dtype), q, uniform)
        draw, token, uniform = self.candidates(log_probs, law, q, generator)
        log_pi = log_probs[law[draw], token].to(self.precision.dtype) + math.log(q)
        return self.race(draw, token, scores(log_pi, uniform), q, generator)

    def candidates(
        self, log_probs: Tensor, law: Tensor, q: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Find draw, token and uniform (c,) of every token with E <= HORIZON pi (a token may occur twice).

        An exponential E is the first point of a Poisson process of rate 1. The processes of all tokens of a draw, each
        on [0, HORIZON pi_k], are one process with HORIZON q points on average, which fall to tokens in proportion to p.
        """
        step = 2.0**-self.precision.bits
        count = int(torch.poisson(torch.tensor(len(law) * HORIZON * q, dtype=torch.float64), generator=generator))
        draw = torch.randint(len(law), (count,), generator=generator)
        token = inverse(log_probs, law[draw], generator)
        arrival = torch.rand(count, generator=generator, dtype=torch.float64)
        arrival *= HORIZON * q * log_probs[law[draw], token].double().exp()
        steps_below_one = torch.floor(-torch.expm1(-arrival) / step) + 1
        return draw, token, (1 - steps_below_one * step).to(self.precision.dtype)

    def race(
        self, draw: Tensor, token: Tensor, score: Tensor, q: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Race candidates (c,) against each other and against MASK, which loses ties as the last of an argmax."""
        racing, which = draw.unique(return_inverse=True)
        uniform = torch.rand(len(racing), generator=generator, dtype=self.precision.dtype)
        mask = scores(torch.full_like(uniform, math.log1p(-q)), uniform)
        best = mask.scatter_reduce(0, which, score, "amax")
        wins = score == best[which]
        first = torch.full_like(racing, torch.iinfo(torch.long).max)
        first = first.scatter_reduce(0, which[wins], token[wins], "amin")  # tied tokens: the first, as an argmax has it
        revealed = first < torch.iinfo(torch.long).max
        return racing[revealed], first[revealed]


def decoupled(log_probs: Tensor, law: Tensor, q: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw whether, then what: a Bernoulli of q, then the token from its own distribution, both in float64."""
    chosen = torch.rand(len(law), generator=generator, dtype=torch.float64) < q
    revealed = chosen.nonzero().squeeze(1)
    return revealed, inverse(log_probs, law[revealed], generator)


def inverse(log_probs: Tensor, law: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a token for each entry of `law` from that row of `log_probs`, as the decoders do it."""
    uniform = torch.rand(len(law), generator=generator, dtype=torch.float64)
    if len(log_probs) > 1:
        return Sampling().draw(log_probs[law], uniform)
    cumulative = log_probs[0].double().exp().cumsum(0)  # one law for millions of draws: do not copy it
    return torch.searchsorted(cumulative, uniform * cumulative[-1], right=True).clamp(max=len(cumulative) - 1)


SAMPLERS: dict[str, Reveal] = {
    "joint, float32": Joint(FLOAT32),
    "joint, float64": Joint(FLOAT64),
    "decoupled": decoupled,
}

Arrival = Callable[[np.ndarray], np.ndarray]
"""x -> P(E <= x) of an exponential E made from rounded uniforms."""


def untouched(x: np.ndarray) -> np.ndarray:
    return -np.expm1(-x)


def truncated(x: np.ndarray, bits: int = FLOAT32.bits) -> np.ndarray:
    """Uniforms are continuous on [0, 1 - 2^-bits], i.e. the Gumbel law is truncated."""
    return np.maximum(0.0, (-np.expm1(-x) - 2.0**-bits) / (1 - 2.0**-bits))


def on_grid(x: np.ndarray, bits: int = FLOAT32.bits) -> np.ndarray:
    """Uniforms are the multiples of 2^-bits below 1, all equally likely: 1 - 2^-bits has a probability of its own."""
    return np.floor(-np.expm1(-x) * 2.0**bits) * 2.0**-bits


def joint_law(probs: np.ndarray, q: float, arrival: Arrival, points: int = 1000) -> np.ndarray:
    """Compute (V,) the probabilities with which the joint sampler reveals each token, by quadrature over the time.

    With F_k(t) = arrival(pi_k t) and W_k(t) = (1 - F_MASK(t)) prod_{i != k} (1 - F_i(t)), the probability that all
    others arrive after t, P(k wins) = int W_k dF_k = int F_k (-dW_k).
    """
    time = -math.log(SMALLEST) / (1 - q) * np.linspace(0, 1, points + 1) ** 2  # until MASK has arrived for sure
    middle = (time[1:] + time[:-1]) / 2
    chunks = [slice(start, start + 4096) for start in range(0, len(probs), 4096)]
    later = np.log1p(-arrival((1 - q) * time))  # log of the probability that MASK and all tokens arrive later
    later[-1] = -np.inf
    for c in chunks:
        later += np.log1p(-arrival(q * probs[c, None] * time)).sum(0)
    law = []
    for c in chunks:
        others = np.exp(later - np.log1p(-arrival(q * probs[c, None] * time)))
        law.append((arrival(q * probs[c, None] * middle) * -np.diff(others, axis=1)).sum(1))
    return np.concatenate(law)


def simulate(sampler: Reveal, log_probs: Tensor, q: float, unmaskings: int, seed: int) -> Tensor:
    """Count (V,) how often each token is revealed in `unmaskings / q` draws from one law (1, V)."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros(log_probs.shape[1], dtype=torch.long)
    left = round(unmaskings / q)
    chunk = int(CANDIDATES / max(HORIZON * q, 0.05))  # `decoupled` has a uniform for each draw, whatever q
    while left > 0:
        law = torch.zeros(1, dtype=torch.long).expand(min(left, chunk))
        counts += torch.bincount(sampler(log_probs, law, q, generator)[1], minlength=len(counts))
        left -= chunk
    return counts


def entropy_of_law(weights: np.ndarray) -> float:
    """-sum p log p in nats, of weights that are normalised first."""
    p = weights[weights > 0] / weights.sum()
    return float(-(p * np.log(p)).sum())


def entropy_of_counts(counts: Tensor) -> float:
    """Estimate the entropy in nats by Grassberger (physics/0307138): ln N - sum_v n_v G(n_v) / N with
    G(n) = psi(n) + (-1)^n / 2 (psi((n + 1) / 2) - psi(n / 2)). NaN if nothing was counted.

    Its bias is smaller than that of the plug-in entropy, which is low by about (tokens seen) / 2N.
    """
    n = counts[counts > 0].double()
    g = n.digamma() + (0.5 - n % 2) * (((n + 1) / 2).digamma() - (n / 2).digamma())
    return float(torch.log(n.sum()) - (n * g).sum() / n.sum()) if len(n) else math.nan
