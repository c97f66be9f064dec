"""The bound of a generation in K steps a block, with random numbers in MASK that are drawn afresh at each.

A generation by `first_hitting steps=K` reveals the L targets of a block in K random sets. Given these and z_k, the
tokens of a set are drawn independently. So with M draws of z at each step

    -log p(x^b | x^<b)  <=  E_sets sum_{k=1..K} E_z[ -log (1/M) sum_m prod_{l in set k} p(x_l | sets before, z_km) ]

twice by Jensen's inequality: over the sets, as in the ELBO, and over z (Burda et al. 1509.00519), where the bound falls
with M. A product runs over the tokens that a step reveals, not over all that are masked.

Shape legend: b rows, D draws of the sets, M draws of z, N text length, g blocks, B block size, S steps.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from hybrid.decoding.unmasking import UnmaskingSchedule, check_count
from hybrid.likelihoods.base import BOUND, Likelihood, LikelihoodMethod, Rows
from hybrid.likelihoods.elbo import mean_and_error
from hybrid.model import Transformer
from hybrid.model.kernels.cross_entropy import cross_entropies
from hybrid.model.two_stream import two_stream_hidden
from hybrid.objectives.noise import NoiseKeys, block_view, latent_noise, target_ranks
from hybrid.options import option

STREAMS_PER_FORWARD = 16
"""Draws that share one clean pass; bounds the memory."""


@dataclass(frozen=True)
class LatentBound(LikelihoodMethod):
    """The bound of `first_hitting` with so many steps a block; of a model without a latent, `latents` changes nothing.

    Draws are of the sets, each with its own z; they give the error.
    """

    relation: ClassVar[str] = BOUND
    latent: ClassVar[str | None] = "fresh"

    steps: int = option(MISSING, "K, steps of a block: of the likelihood of which generation this is a bound")
    latents: int = option(MISSING, "M, draws of the random numbers at each step: more are a tighter bound")

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_count("latents", self.latents)

    def nll(self, model: Transformer, rows: Rows, block_size: int, draws: int | str = 1, seed: int = 0) -> Likelihood:
        noise, n_draws = rows.noise_keys(seed), int(draws)
        due = self._due(noise, rows.is_target, block_size, n_draws)  # (b, D, N)
        n_latents = self.latents if model.config.latent else 1  # without a latent all would be the same
        values = torch.zeros(due.shape[:2], dtype=torch.float64, device=due.device)
        for step in range(int(due.max()) + 1):
            log_p = _log_products(model, rows, due, step, block_size, replace(noise, step=step), n_latents)
            log_p = log_p.unflatten(1, (n_draws, n_latents))  # (b, D, M, g)
            values -= (log_p.logsumexp(2) - math.log(n_latents)).sum(-1)  # of blocks of which nothing is due log 1
        method = f"latent_bound:steps={self.steps},latents={self.latents}"
        return Likelihood(*mean_and_error(values), rows.n_targets, method)

    def _due(self, noise: NoiseKeys, is_target: Tensor, block_size: int, draws: int) -> Tensor:
        """(b, D, N) the step at which each target is revealed; -1: never."""
        rank = target_ranks(noise, is_target, block_size, draws)  # (b, D, g, B)
        targets = block_view(is_target, block_size, False)[:, None].expand_as(rank)
        below = UnmaskingSchedule(steps=self.steps).counts(targets.flatten(0, 2)).cumsum(-1)  # (b D g, S)
        step = torch.searchsorted(below, rank.flatten(0, 2), right=True).view_as(rank).masked_fill(~targets, -1)
        return step.flatten(2)[..., : is_target.shape[1]]


def _log_products(
    model: Transformer, rows: Rows, due: Tensor, step: int, block_size: int, noise: NoiseKeys, n_latents: int
) -> Tensor:
    """(b, D M, g) float64: log of the product over the tokens of each block that are due at this step (b, D, N)."""
    tokens, parts = rows.tokens, []
    for streams in torch.arange(due.shape[1] * n_latents).split(STREAMS_PER_FORWARD):
        z = latent_noise(noise, model.config, due.shape[2], block_size, len(streams), int(streams[0]))
        of_stream = due[:, streams.to(due.device) // n_latents]  # (b, s, N)
        masked, revealed = of_stream >= step, of_stream == step
        hidden = two_stream_hidden(model, tokens, masked, block_size, rows.documents, latent=z)
        row, _, position = revealed.nonzero(as_tuple=True)
        losses = torch.zeros(masked.shape, dtype=torch.float64, device=tokens.device)
        losses[revealed] = cross_entropies(
            hidden[revealed[masked]], model.head_matrix(), tokens[row, position], model.banned_token_id
        ).double()
        parts.append(-block_view(losses, block_size, 0.0).sum(-1))
    return torch.cat(parts, dim=1)
