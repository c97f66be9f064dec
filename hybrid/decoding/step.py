"""Ask the networks about the live blocks at one step of the loop, and only where a decoder wants to know.

Shape legend: r active rows, B block size, V vocabulary, m positions that are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from hybrid import rng
from hybrid.decoding.config import GenerationConfig
from hybrid.decoding.decoder import Choice, Prediction, View, probability
from hybrid.decoding.denoiser import LiveBlocks, Network
from hybrid.decoding.places import Places
from hybrid.decoding.sampling import Uniforms
from hybrid.device import send
from hybrid.model import ModelConfig


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

    def close(self) -> None:
        """Let the next generation have what is recorded."""
        for network in self.all:
            if network.replays is not None:
                network.replays.give_back(network.model)


class Decision(NamedTuple):
    """What a decoder chose for a step, where it may; and how much that is, for which the host waits once."""

    reveal: Tensor  # (r, B)
    remask: Tensor | None  # (r, B)
    own: Tensor | None  # (r, B) tokens of its own
    n_revealed: int
    n_new: int  # of these, how many were masked
    n_masked: int  # after the step


class Step:
    """The live blocks at one step. Each network runs on them once, when it is first asked."""

    def __init__(
        self, networks: Networks, config: GenerationConfig, uniforms: Uniforms, text: Tensor, live: LiveBlocks,
        step: int,
    ):  # fmt: skip
        self.networks, self.config, self.uniforms, self.text, self.live, self.step = (
            networks, config, uniforms, text, live, step,
        )  # fmt: skip
        self.tokens, self.is_masked = live.tokens, live.is_masked
        self.masked = Places(live.is_masked, live.n_masked)
        self.sampled_with: Tensor | None = None  # (r, B) probability of what the decoder has drawn itself

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
        return self._predict(self.masked)

    def decide(self, choice: Choice, finished_too: bool, sizes: Sequence[int] = ()) -> Decision:
        """Keep of a choice what is allowed, and count it.

        Args:
            finished_too: rows in which nothing is masked may change.
            sizes: how many positions the first steps of the block reveal, as far as that is known.

        Raises:
            ValueError: ids that are no tokens, among those that the decoder wrote itself.
        """
        (reveal, remask, own), live = choice, self.live
        if remask is None and own is None:
            reveal = reveal & self.is_masked
            n = sizes[self.step] if self.step < len(sizes) else int(reveal.count_nonzero())
            return Decision(reveal, None, None, n, n, live.n_masked - n)
        # Asked now, not when the next step has begun: that would cost each block a forward for nothing.
        is_open = live.is_open(finished_too)
        reveal = reveal & (self.is_masked if own is None else is_open)
        after = self.is_masked & ~reveal
        if remask is not None:
            remask = remask & is_open
            after = after | remask
        if own is None:
            n, n_masked = torch.stack([reveal, after]).count_nonzero((1, 2)).tolist()
            return Decision(reveal, remask, None, n, n, n_masked)
        wrong = self._is_no_token(reveal, own)
        counts = torch.stack([reveal, reveal & self.is_masked, after, wrong]).count_nonzero((1, 2)).tolist()
        if counts[-1]:
            raise ValueError(
                f"decoder: it wrote {int(own[wrong][0])}, which is no token of the vocabulary (0 to "
                f"{self.networks.denoiser.model.vocab_size - 1}, without MASK)"
            )
        return Decision(reveal, remask, own, *counts[:3])

    def _is_no_token(self, where: Tensor, own: Tensor) -> Tensor:
        """(r, B)"""
        model = self.networks.denoiser.model
        return where & ((own < 0) | (own >= model.vocab_size) | (own == model.mask_token_id))

    def revealed(self, view: View, decision: Decision) -> tuple[Tensor, Callable[[], Tensor]]:
        """Return tokens (r, B) with those that are revealed, and a function that gives confidences (r, B).

        If the decoder has not looked, head and sampling run on the revealed positions alone, and sampling does if it
        has looked at distributions only; the tokens are the same, as their uniforms are keyed by position.
        """
        where, looked = decision.reveal, vars(self).get("prediction")
        if decision.own is not None:
            tokens = torch.where(where, decision.own, self.tokens)
            return tokens, lambda: torch.ones(where.shape) if self.sampled_with is None else self.sampled_with
        if looked is not None and looked.is_drawn:
            return torch.where(where, view.candidates, self.tokens), lambda: view.confidence
        chosen = Places(where, decision.n_revealed)
        if looked is None:
            drawn = self._predict(chosen)
        else:
            drawn = self._drawn(looked.log_probs.index_select(0, chosen.within(self.masked)), chosen)
        tokens = chosen.put(drawn.candidates, self.tokens)
        return tokens, lambda: chosen.put(drawn.confidence, drawn.log_probs.new_ones(where.shape))

    def _predict(self, places: Places) -> Prediction:
        return self._drawn(self._log_probs(*self.hidden, places), places)

    def _drawn(self, log_probs: Tensor, places: Places) -> Prediction:
        """Candidates are drawn when they are read, with the uniforms of this step."""
        return Prediction(log_probs, lambda: self._draw(log_probs, places, rng.TOKEN))

    def _draw(self, log_probs: Tensor, places: Places, purpose: int) -> Tensor:
        """(m,) tokens; a MASK that lies in the vocabulary counts, but is never written."""
        log_probs = self.networks.denoiser.writable(log_probs)
        return self.config.draw(log_probs, places.take(self.uniform(purpose)))

    @cached_property
    def hidden(self) -> tuple[Tensor, Tensor | None]:
        return self._hidden(self.tokens)

    def _hidden(self, canvas: Tensor, causal: bool = False) -> tuple[Tensor, Tensor | None]:
        """Hidden states (r, B, dim) of `canvas` (r, B) with the prompts and, where it changes something, without."""

        def read(network: Network) -> Tensor:
            if causal:
                return network.read_causally(self.text, self.live, canvas)
            return network.read(self.text, self.live, canvas, self.latent(network.model.config))

        without_prompt = self.networks.without_prompt
        has_prompts = any(row.prompt for row in self.live.rows)
        free = None if without_prompt is None or not has_prompts else read(without_prompt)
        return read(self.networks.denoiser), free

    def latent(self, model: ModelConfig) -> Tensor | None:
        """(r, B, model.latent) random numbers of MASK for all readings of this step; None: a model has none."""
        if not model.latent or self.config.latent == "none":
            return None
        step = 0 if self.config.latent == "keep" else self.step
        return self.uniforms.normals(model, self.live.places, step, self.tokens.device)

    def _log_probs(self, given: Tensor, free: Tensor | None, places: Places) -> Tensor:
        """(m, V) of hidden states with and without the prompts, at some positions.

        With guidance w, log p ~ (1 + w) log p(x | prompt) - w log p(x | prompt read as MASK) (LLaDA, 2502.09992); a row
        without a prompt has nothing to be guided by.
        """
        networks = self.networks
        with_prompt = networks.denoiser.log_probs(places.take(given))
        if networks.without_prompt is None or free is None:
            return with_prompt
        # What is impossible either way (a banned MASK) stays so: of two infinities the difference would be none.
        without = networks.without_prompt.log_probs(places.take(free)).clamp(min=-1e30)
        guided = ((1 + networks.guidance) * with_prompt - networks.guidance * without).log_softmax(-1)
        has_prompt = send(torch.tensor([bool(row.prompt) for row in self.live.rows]), with_prompt.device)
        return torch.where(has_prompt[places.rows, None], guided, with_prompt)

    def read(self, canvas: Tensor, places: Tensor, causal: bool = False) -> Tensor:
        """`View.read`"""
        return self._log_probs(*self._hidden(canvas, causal), Places(places))

    def sample(self, log_probs: Tensor, places: Tensor, number: int = 0) -> Tensor:
        """`View.sample`"""
        drawn = self._draw(log_probs, Places(places, len(log_probs)), rng.TOKEN + number * rng.FURTHER)
        before = log_probs.new_ones(places.shape) if self.sampled_with is None else self.sampled_with
        self.sampled_with = before.masked_scatter(places, probability(log_probs, drawn))
        return drawn

    def weigh(self, candidates: Tensor) -> Tensor:
        """(r, B) the planner's log-probability of `candidates`; 0 where nothing is to be written."""
        planner, live = self.networks.planner, self.live
        if planner is not None:
            places = Places(live.is_valid, live.n_wanted)
            canvas = candidates.masked_fill(~live.is_valid, planner.model.mask_token_id)
            hidden = planner.read(self.text, live, canvas, self.latent(planner.model.config))
            log_probs = planner.log_probs(places.take(hidden))
        else:
            places = Places(live.is_valid & ~self.is_masked, live.n_wanted - live.n_masked)
            log_probs = self._log_probs(*self.hidden, places)
        weights = log_probs.gather(-1, places.take(candidates)[:, None]).squeeze(-1)
        planned = places.put(weights, log_probs.new_zeros(candidates.shape))
        if planner is None:
            own = self.prediction
            planned = self.masked.put(own.log_probs.gather(-1, own.candidates[:, None]).squeeze(-1), planned)
        return planned
