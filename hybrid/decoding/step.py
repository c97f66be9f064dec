"""Ask the networks about the live blocks at one step of the loop, and only where a decoder wants to know.

Shape legend: r active rows, B block size, V vocabulary, m positions that are read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hybrid import rng
from hybrid.decoding.decoder import Prediction, View, probability
from hybrid.decoding.denoiser import LiveBlocks, Network
from hybrid.decoding.sampling import Sampling, Uniforms


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
    """The live blocks at one step. Each network runs on them once, when it is first asked."""

    def __init__(
        self, networks: Networks, sampling: Sampling, uniforms: Uniforms, text: Tensor, live: LiveBlocks, step: int
    ):
        self.networks, self.sampling, self.uniforms, self.text, self.live, self.step = (
            networks, sampling, uniforms, text, live, step,
        )  # fmt: skip
        self.tokens, self.is_masked = live.tokens, live.is_masked
        self.sampled_with = torch.ones(())  # (r, B) probability of what the decoder has drawn itself

    def view(self) -> View:
        live = self.live
        return View(
            self.step, self.tokens, self.is_masked, live.is_fixed, live.is_valid,
            draw=lambda: self.uniform(rng.DECIDE), forward=lambda: self.prediction, planner=self.weigh,
            read=self.read, sample=self.sample, mask_token_id=self.networks.denoiser.model.mask_token_id,
        )  # fmt: skip

    def uniform(self, purpose: int) -> Tensor:
        """(r, B)"""
        return self.uniforms.at(purpose, self.live.places, self.step, self.tokens.device)

    @cached_property
    def prediction(self) -> Prediction:
        """At all masked positions, for a decoder that wants to see them."""
        return self._predict(self.is_masked)

    def revealed(self, view: View, chosen: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        """Reveal the masked positions `chosen` (r, B): tokens (r, B), and a function that gives confidences (r, B).

        If the decoder has not looked, head and sampling run on the chosen positions alone, and sampling does if it has
        looked at distributions only; the tokens are the same, as their uniforms are keyed by position.
        """
        looked: Prediction | None = vars(self).get("prediction")
        if looked is not None and looked.is_drawn:
            return torch.where(chosen, view.candidates, self.tokens), lambda: view.confidence
        if looked is None:
            drawn = self._predict(chosen)
        else:
            drawn = self._drawn(looked.log_probs[chosen[self.is_masked]], chosen)
        shape = self.tokens.shape
        return (
            self.tokens.masked_scatter(chosen, drawn.candidates),
            lambda: drawn.log_probs.new_ones(shape).masked_scatter(chosen, drawn.confidence),
        )

    def written(self, where: Tensor, own: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        """Do the same with tokens `own` (r, B) that the decoder chose for the positions `where` (r, B)."""
        model = self.networks.denoiser.model
        chosen = own[where]
        bad = (chosen < 0) | (chosen >= model.vocab_size) | (chosen == model.mask_token_id)
        if bad.any():
            raise ValueError(
                f"decoder: it wrote {int(chosen[bad][0])}, which is no token of the vocabulary (0 to "
                f"{model.vocab_size - 1}, without MASK)"
            )
        return torch.where(where, own, self.tokens), lambda: self.sampled_with.expand(where.shape)

    def _predict(self, places: Tensor) -> Prediction:
        return self._drawn(self._log_probs(*self.hidden, places), places)

    def _drawn(self, log_probs: Tensor, places: Tensor) -> Prediction:
        """Candidates are drawn when they are read, with the uniforms of this step."""
        return Prediction(log_probs, lambda: self._draw(log_probs, places, rng.TOKEN))

    def _draw(self, log_probs: Tensor, places: Tensor, purpose: int) -> Tensor:
        """(m,) tokens; a MASK that lies in the vocabulary counts, but is never written."""
        model = self.networks.denoiser.model
        if model.mask_token_id < model.vocab_size and model.banned_token_id is None:
            mask = torch.tensor([model.mask_token_id], device=places.device)
            log_probs = log_probs.index_fill(-1, mask, -torch.inf)
        return self.sampling.draw(log_probs, self.uniform(purpose)[places])

    @cached_property
    def hidden(self) -> tuple[Tensor, Tensor | None]:
        return self._hidden(self.tokens)

    def _hidden(self, canvas: Tensor, causal: bool = False) -> tuple[Tensor, Tensor | None]:
        """Hidden states (r, B, dim) of `canvas` (r, B) with the prompts and, where it changes something, without."""

        def read(network: Network) -> Tensor:
            return (network.read_causally if causal else network.read)(self.text, self.live, canvas)

        without_prompt = self.networks.without_prompt
        has_prompts = any(row.prompt for row in self.live.rows)
        free = None if without_prompt is None or not has_prompts else read(without_prompt)
        return read(self.networks.denoiser), free

    def _log_probs(self, given: Tensor, free: Tensor | None, places: Tensor) -> Tensor:
        """(m, V) of hidden states with and without the prompts, where `places` (r, B) is True.

        With guidance w, log p ~ (1 + w) log p(x | prompt) - w log p(x | prompt read as MASK) (LLaDA, 2502.09992); a row
        without a prompt has nothing to be guided by.
        """
        networks = self.networks
        with_prompt = networks.denoiser.log_probs(given[places])
        if networks.without_prompt is None or free is None:
            return with_prompt
        # What is impossible either way (a banned MASK) stays so: of two infinities the difference would be none.
        without = networks.without_prompt.log_probs(free[places]).clamp(min=-1e30)
        guided = ((1 + networks.guidance) * with_prompt - networks.guidance * without).log_softmax(-1)
        has_prompt = torch.tensor([bool(row.prompt) for row in self.live.rows], device=places.device)
        return torch.where(has_prompt[places.nonzero()[:, 0], None], guided, with_prompt)

    def read(self, canvas: Tensor, places: Tensor, causal: bool = False) -> Tensor:
        """`View.read`"""
        return self._log_probs(*self._hidden(canvas, causal), places)

    def sample(self, log_probs: Tensor, places: Tensor, number: int = 0) -> Tensor:
        """`View.sample`"""
        drawn = self._draw(log_probs, places, rng.TOKEN + number * rng.FURTHER)
        self.sampled_with = self.sampled_with.to(log_probs).expand(places.shape).clone()
        self.sampled_with[places] = probability(log_probs, drawn)
        return drawn

    def weigh(self, candidates: Tensor) -> Tensor:
        """(r, B) the planner's log-probability of `candidates`; 0 where nothing is to be written."""
        planner, is_valid = self.networks.planner, self.live.is_valid
        if planner is not None:
            places = is_valid
            canvas = candidates.masked_fill(~is_valid, planner.model.mask_token_id)
            log_probs = planner.log_probs(planner.read(self.text, self.live, canvas)[places])
        else:
            places = is_valid & ~self.is_masked
            log_probs = self._log_probs(*self.hidden, places)
        planned = log_probs.new_zeros(candidates.shape)
        planned[places] = log_probs.gather(-1, candidates[places][:, None]).squeeze(-1)
        if planner is None:
            own = self.prediction
            planned[self.is_masked] = own.log_probs.gather(-1, own.candidates[:, None]).squeeze(-1)
        return planned
