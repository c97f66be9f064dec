"""One step of the block loop: what the networks say of the live blocks, asked only where a decoder wants to know.

Shape legend: r active rows, B block size, V vocabulary, m positions that are read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hybrid import rng
from hybrid.decoding.decoder import Prediction, View
from hybrid.decoding.denoiser import Live, Network
from hybrid.decoding.sampling import Sampling
from hybrid.decoding.uniforms import Uniforms


@dataclass(frozen=True)
class Networks:
    """Who is asked. `without_prompt` is the branch of guidance that reads prompts as MASK; None: no guidance."""

    denoiser: Network
    without_prompt: Network | None = None
    planner: Network | None = None
    guidance: float = 0.0

    @property
    def all(self) -> list[Network]:
        return [network for network in (self.denoiser, self.without_prompt, self.planner) if network is not None]

    @property
    def nfe(self) -> int:
        return sum(network.nfe for network in self.all)


class Step:
    """The live blocks at one step. Each network runs once, when it is first asked."""

    def __init__(
        self, networks: Networks, sampling: Sampling, uniforms: dict[int, Uniforms], text: Tensor, live: Live, step: int
    ):
        self.networks, self.sampling, self.uniforms, self.text, self.live, self.step = (
            networks, sampling, uniforms, text, live, step,
        )  # fmt: skip
        self.tokens, self.is_masked = live.tokens, live.is_masked

    def view(self) -> View:
        live = self.live
        return View(
            self.step, self.tokens, self.is_masked, live.is_fixed, live.is_valid,
            draw=lambda: self.uniform(rng.DECIDE), forward=lambda: self.prediction, judge=self.judge,
        )  # fmt: skip

    def uniform(self, purpose: int) -> Tensor:
        """(r, B)"""
        return self.uniforms[purpose].at(self.live.places, self.step, self.tokens.device)

    @cached_property
    def prediction(self) -> Prediction:
        """At all masked positions, for a decoder that wants to see them."""
        return self._predict(self.is_masked)

    def reveal(self, view: View, chosen: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        """The tokens (r, B) with those of the masked positions `chosen` (r, B) revealed, and what makes their
        confidences (r, B), for who wants to know.

        If the decoder has not looked, head and sampling run on the chosen positions alone; the tokens are the same, as
        their uniforms are keyed by position.
        """
        if "prediction" in vars(self):
            return torch.where(chosen, view.proposal, self.tokens), lambda: view.confidence
        drawn = self._predict(chosen)
        shape = self.tokens.shape
        return (
            self.tokens.masked_scatter(chosen, drawn.proposal),
            lambda: drawn.log_probs.new_ones(shape).masked_scatter(chosen, drawn.confidence),
        )

    def _predict(self, places: Tensor) -> Prediction:
        log_probs = self.log_probs(places)
        choice = log_probs
        model = self.networks.denoiser.model
        if model.mask_token_id < model.vocab_size and model.banned_token_id is None:  # it counts, but is never written
            choice = log_probs.index_fill(-1, torch.tensor([model.mask_token_id], device=places.device), -torch.inf)
        return Prediction(log_probs, self.sampling.propose(choice, self.uniform(rng.TOKEN)[places]))

    @cached_property
    def hidden(self) -> Tensor:
        return self.networks.denoiser.read(self.text, self.live, self.tokens)

    @cached_property
    def hidden_without_prompt(self) -> Tensor | None:
        """None where it would change nothing."""
        network = self.networks.without_prompt
        if network is None or not any(row.prompt for row in self.live.rows):
            return None
        return network.read(self.text, self.live, self.tokens)

    def log_probs(self, places: Tensor) -> Tensor:
        """(m, V) at the positions where `places` (r, B) is True.

        With guidance w, log p ~ (1 + w) log p(x | prompt) - w log p(x | prompt read as MASK) (LLaDA, 2502.09992); a row
        without a prompt has nothing to be guided by.
        """
        networks, other = self.networks, self.hidden_without_prompt
        given = networks.denoiser.log_probs(self.hidden[places])
        if networks.without_prompt is None or other is None:
            return given
        # What is impossible either way (a banned MASK) stays so: of two infinities the difference would be none.
        free = networks.without_prompt.log_probs(other[places]).clamp(min=-1e30)
        guided = ((1 + networks.guidance) * given - networks.guidance * free).log_softmax(-1)
        has_prompt = torch.tensor([bool(row.prompt) for row in self.live.rows], device=places.device)
        return torch.where(has_prompt[places.nonzero()[:, 0], None], guided, given)

    def judge(self, proposal: Tensor) -> Tensor:
        """(r, B) the planner's log-probability of `proposal`; 0 behind the end of a short block."""
        planner = self.networks.planner
        if planner is not None:
            places = self.live.is_valid
            log_probs = planner.log_probs(planner.read(self.text, self.live, proposal)[places])
        else:
            places = self.live.is_valid & ~self.is_masked
            log_probs = self.log_probs(places)
        judged = log_probs.new_zeros(proposal.shape)
        judged[places] = log_probs.gather(-1, proposal[places][:, None]).squeeze(-1)
        if planner is None:
            own = self.prediction
            judged[self.is_masked] = own.log_probs.gather(-1, own.proposal[:, None]).squeeze(-1)
        return judged
