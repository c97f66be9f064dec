"""The view that a decoder is given, and the protocol that it follows.

Shape legend: r rows of the batch, B positions of the live block, V vocabulary, m masked positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from hybrid.decoding.config import GenerationConfig
from hybrid.decoding.sampling import LAW, Sampling
from hybrid.model import ModelConfig
from hybrid.model.two_stream import check_reads_causally, reads_causally
from hybrid.options import shown, title

MAX_IDLE_STEPS = 10_000
"""Consecutive steps without a revealed token, or steps of a block that re-mask beyond those that the decoder has by its
options, after which it is taken to be stuck."""


class Prediction:
    """Distributions and candidates of the m masked positions of a live block, in the order of their `nonzero()`.

    Args:
        log_probs: (m, V) at temperature 1.
        candidates: (m,) ids, or a function that draws them, called when they are first read: drawing takes several
            passes over the distributions, in float64.
    """

    def __init__(self, log_probs: Tensor, candidates: Tensor | Callable[[], Tensor]):
        self.log_probs, self._candidates = log_probs, candidates

    @cached_property
    def candidates(self) -> Tensor:
        """(m,) ids"""
        return self._candidates if isinstance(self._candidates, Tensor) else self._candidates()

    @property
    def is_drawn(self) -> bool:
        """Whether the candidates are known already."""
        return "candidates" in vars(self) or isinstance(self._candidates, Tensor)

    @property
    def confidence(self) -> Tensor:
        """(m,) probability, at temperature 1, of the candidates."""
        return probability(self.log_probs, self.candidates)


def probability(log_probs: Tensor, ids: Tensor) -> Tensor:
    """(m, V), (m,) -> (m,)"""
    return log_probs.gather(-1, ids[:, None]).squeeze(-1).exp()


def _nobody(*_: Any) -> Tensor:
    raise ValueError("view: it was made without `read` and `sample`; give it both, or read neither")


@dataclass(eq=False)
class View:
    """The live block at one step.

    `candidates`, `log_probs` and `confidence` run the network when they are first read, `planned` also the planner. A
    decoder that decides without them costs a forward only if it reveals something. A decoder whose order is to be a
    function of the text alone reads neither `uniform` nor what depends on the drawn `candidates`.

    A decoder that writes tokens of its own draws them with `read` and `sample`:

        read(canvas, places, causal=False) -> log_probs
            Runs the network on any canvas (r, B) of ids, `mask_token_id` where unknown. Returns (m, V) at temperature
            1, guidance included, at the m positions where `places` (r, B) is True. Counted as a forward.
            With `causal` each position is predicted from those before it alone, off the clean row before it: by any
            `next_token` network, and by `in_place` ones of `context: causal` (trained so by `objective.ar_weight`).
        sample(log_probs, places, number=0) -> tokens
            Draws (m,) tokens with the sampling settings. The draw is keyed by row, position, step and `number`: a
            position drawn again in the same step needs another number, or it gets the same uniform.

    A view can be made by hand, e.g. on a known text: `draw`, `forward` and `planner` are called when they are needed
    and at most once each.
    """

    step: int  # 0, 1, ... within the block
    tokens: Tensor  # (r, B) ids, mask_token_id where unknown
    is_masked: Tensor  # (r, B) booleans: may be revealed
    is_fixed: Tensor  # (r, B): part of the prompt, may never be re-masked
    is_valid: Tensor  # (r, B): False behind the end of a short last block, and of what is asked for
    draw: Callable[[], Tensor]
    forward: Callable[[], Prediction]
    planner: Callable[[Tensor], Tensor] | None = None  # `candidates` (r, B) -> `planned` (r, B)
    read: Callable[..., Tensor] = _nobody
    sample: Callable[..., Tensor] = _nobody
    mask_token_id: int = -1  # what a canvas has where nothing is known

    @cached_property
    def uniform(self) -> Tensor:
        """(r, B) float64 in [0, 1), independent of the batch: for decisions that are random."""
        return self.draw()

    @cached_property
    def prediction(self) -> Prediction:
        return self.forward()

    @cached_property
    def candidates(self) -> Tensor:
        """(r, B) a token for each masked position, drawn with the sampling settings; elsewhere what is there."""
        there = self.tokens.clamp(max=self.prediction.log_probs.shape[-1] - 1)  # MASK behind a short block: any token
        return there.masked_scatter(self.is_masked, self.prediction.candidates)

    @cached_property
    def log_probs(self) -> Tensor:
        """(r, B, V) at temperature 1, before top-k and top-p; a known position has all its mass on its token."""
        masked = self.prediction.log_probs
        known = self.tokens.clamp(max=masked.shape[-1] - 1)[..., None]
        full = masked.new_full((*self.tokens.shape, masked.shape[-1]), -torch.inf).scatter_(-1, known, 0.0)
        full[self.is_masked] = masked
        return full

    @cached_property
    def confidence(self) -> Tensor:
        """(r, B) probability, at temperature 1, of the candidate of each masked position; elsewhere 1."""
        known = self.prediction  # of a text that is known it has no candidates, which says why when they are read
        return self.scatter(probability(known.log_probs, known.candidates), 1.0)

    @cached_property
    def planned(self) -> Tensor:
        """(r, B) log-probability that the planner gives to `candidates`, at masked and at known positions.

        The planner is the network itself, unless the engine has another one. The network answers at known positions
        from the same forward as at the masked ones; another planner reads the block with all candidates filled in. Both
        see the token that they weigh, except the first of a block with `prediction=next_token`.
        """
        if self.planner is None:
            raise ValueError("planned: this view was made without a planner; give it `planner`")
        return self.planner(self.candidates)

    @property
    def is_free(self) -> Tensor:
        """(r, B): neither prompt nor behind the end of the block: what is to be written, known or not."""
        return self.is_valid & ~self.is_fixed

    def scatter(self, values: Tensor, elsewhere: float) -> Tensor:
        """Values (m,) of the masked positions -> (r, B)."""
        return values.new_full(self.is_masked.shape, elsewhere).masked_scatter(self.is_masked, values)


class Decoder(Protocol):
    """Decides which positions to reveal, or which tokens to write. The engine owns texts, sampling and the loop.

    One that does not write block by block has a method `loop` instead of both, which makes a `session.Session`.

    A block of a row is finished when nothing of it is masked; what a decoder wants to change there is ignored.

    Attributes that a decoder may have:
        min_steps: the steps that each block is given whatever is masked, of a decoder that may re-mask a complete one.
        steps: how many steps it takes a block, of a decoder that re-masks; with `MAX_IDLE_STEPS` more it is taken to be
            stuck.
        ignores_sampling: True for a decoder whose tokens follow a law of its own; temperature, top_k and top_p are then
            refused.
        reads_causally: True for a decoder that reads with `causal`; networks that cannot be read so are then refused.
        reads_masks: False for a decoder that reads no MASK, so that random numbers in it have no effect.
        step_sizes: a method `(view, state) -> (S,)` of a decoder that never re-masks, and knows when a block starts how
            many positions of all rows together each of its first S steps reveals; or None. A GPU's host then waits once
            for a block, not at every step. It is read where it stands in the class that `select` stands in: of one
            that overrides `select` alone it would not be true.
    """

    def start(self, view: View) -> Any:
        """State of a block, made before its first step (nothing needs to be known of the network yet).

        It belongs to the block: `select` may change it.
        """
        ...

    def select(self, view: View, state: Any) -> tuple[Tensor, Tensor | None] | tuple[Tensor, Tensor | None, Tensor]:
        """(reveal, remask), booleans (r, B), or (reveal, remask, tokens) with ids (r, B).

        Masked positions of `reveal` take their candidates, then those of `remask` become MASK; None re-masks nothing.
        With `tokens` positions of `reveal` take these instead, known ones too: all that are free.
        """
        ...


def suits(decoder: Any, config: ModelConfig) -> bool:
    """Return whether networks of this kind say all that a decoder, or an entry of DECODERS, reads."""
    return not getattr(decoder, "reads_causally", False) or reads_causally(config)


def has_own_loop(decoder: Any) -> bool:
    """Return whether a decoder, or an entry of DECODERS, writes texts in a loop of its own, not block by block."""
    return hasattr(decoder, "loop")


def name_of(decoder: Any) -> str:
    """Name a decoder, given as a user gives it: by name, as a mapping, or as an instance."""
    return title(decoder) if isinstance(decoder, (str, Mapping)) else repr(decoder)


def check_decoder(decoder: Decoder, config: ModelConfig, options: GenerationConfig) -> None:
    """Raise a ValueError if the network cannot be read as the decoder reads it, or if it ignores what is asked for."""
    if has_own_loop(decoder):
        for name in ("guidance", "planner"):
            if value := getattr(options, name):
                what = shown(value) if name == "guidance" else "another network"
                raise ValueError(
                    f"{name}: {what} is nothing for decoder {name_of(options.decoder)}, which asks one network alone; "
                    "leave it out, or choose another decoder"
                )
    if not suits(decoder, config):
        check_reads_causally(config, f"decoder: {decoder!r}")
    if not getattr(decoder, "ignores_sampling", False):
        return
    for name in LAW:
        if (value := getattr(options, name)) != getattr(Sampling(), name):
            raise ValueError(
                f"{name}: {value} has no effect on {decoder!r}, which draws its tokens by a law of its own; leave it "
                "out, or choose another decoder"
            )


Choice = tuple[Tensor, Tensor | None, Tensor | None]


def choose(decoder: Decoder, view: View, state: Any) -> Choice:
    """Return what `select` chooses: (reveal, remask, tokens), None for what it leaves out.

    Raises:
        ValueError: it is of another form; the message names the decoder.
    """
    choice = decoder.select(view, state)
    if not isinstance(choice, tuple) or len(choice) not in (2, 3):
        what = f"{type(choice).__name__}{f' of {len(choice)}' if isinstance(choice, tuple) else ''}"
        raise ValueError(
            f"decoder: select of {decoder!r} gave a {what}; it must be (reveal, remask) or (reveal, remask, tokens)"
        )
    reveal, remask, *own = choice
    shape = view.tokens.shape
    _refuse_other(decoder, "reveal", reveal, shape, torch.bool)
    if remask is not None:
        _refuse_other(decoder, "remask", remask, shape, torch.bool)
    if not own:
        return reveal, remask, None
    _refuse_other(decoder, "tokens", own[0], shape, torch.int64)
    return reveal, remask, own[0]


def step_sizes(decoder: Decoder, view: View, state: Any) -> list[int]:
    """Return how many positions the first steps of a block reveal, as far as the decoder knows it beforehand; on a CPU
    nothing, where there is nobody to wait for and it is as quick to look at each step."""
    if view.tokens.device.type == "cpu":
        return []
    owners = [next((c for c in type(decoder).__mro__ if name in vars(c)), None) for name in ("select", "step_sizes")]
    if owners[0] is not owners[1]:  # there is none, or it is what another class says of its own `select`
        return []
    sizes: Tensor | None = decoder.step_sizes(view, state)  # type: ignore[attr-defined]
    return [] if sizes is None else sizes.tolist()


def _refuse_other(decoder: Decoder, name: str, value: Any, shape: torch.Size, dtype: torch.dtype) -> None:
    if isinstance(value, Tensor) and value.shape == shape and value.dtype == dtype:
        return
    what = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise ValueError(
        f"decoder: select of {decoder!r} gave {what} as {name}; it must be a tensor, {dtype} {tuple(shape)}"
    )


class Patience:
    """Counts the steps of a block, to refuse a decoder that never gets it done."""

    def __init__(self, decoder: Decoder, block_size: int):
        self.decoder, self.idle, self.remasking = decoder, 0, 0
        steps = getattr(decoder, "steps", None)
        self.most = MAX_IDLE_STEPS + block_size + (steps if isinstance(steps, int) else 0)

    def count(self, advanced: bool, remasks: bool) -> None:
        """Count a step that revealed something (`advanced`) or not, and had a mask of what to take back or none.

        Raises:
            ValueError: the decoder is stuck; the message names it.
        """
        self.idle = 0 if advanced else self.idle + 1
        self.remasking += remasks
        if self.idle > MAX_IDLE_STEPS:
            raise ValueError(
                f"decoder: {self.decoder!r} revealed nothing in {self.idle} steps; select must make progress"
            )
        if self.remasking > self.most:
            raise ValueError(
                f"decoder: {self.decoder!r} has re-masked in {self.remasking} steps of a block, which is not done; "
                "select must make progress"
            )
