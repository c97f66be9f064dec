"""Likelihoods of decoding orders: what a model assigns to a text when its tokens are revealed in a given order.

`policy`      the exact likelihood of model and deterministic decoder together (DUEL, 2603.01367): follow the decoder on
              the text itself and multiply the probabilities of what it reveals. Of several decoders: the best of them
              for each block in hindsight.
`importance`  -log of the mean over K random orders of p(x | order), per block: the bound at K = 1, the exact any-order
              likelihood (`enumerate`) as K grows; in between a bound that is tighter with every order (Burda et al.
              1509.00519, with the order as the latent variable).

Shape legend: b rows, K orders, N text length, g blocks, B block size, m masked tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hybrid.decoding import DECODERS, Decoder
from hybrid.decoding.decoder import Patience, View, choose, has_own_loop
from hybrid.decoding.places import Places
from hybrid.likelihoods.base import BOUND, Likelihood, LikelihoodMethod, Rows
from hybrid.likelihoods.enumerated import ROWS_PER_FORWARD
from hybrid.model import Transformer
from hybrid.model.kernels.cross_entropy import cross_entropies
from hybrid.model.two_stream import two_stream_hidden
from hybrid.objectives.noise import block_view, target_ranks
from hybrid.options import build, needs, option

ORDERS_PER_FORWARD = 8
"""Orders that share one clean pass; bounds the memory."""


@dataclass(frozen=True)
class Policy(LikelihoodMethod):
    """The exact likelihood of each row in the order of a decoder (of several: for each block, of the best one).

    Several tokens revealed in one step count as independent draws, as they are when generating at temperature 1.
    """

    is_exact_at_1: ClassVar[bool] = True

    decoder: Any = option(None, "a decoder whose order is deterministic: a name, a mapping with its options, or a list")

    def nll(self, model: Transformer, rows: Rows, block_size: int, draws: int | str = 1, seed: int = 0) -> Likelihood:
        """Raises a ValueError for no decoder, or one whose order is random, depends on the tokens that it draws, or is
        revised."""
        specs = self.decoder if isinstance(self.decoder, (list, tuple)) else [self.decoder]
        if not specs or specs == [None]:
            raise ValueError("decoder: method 'policy' needs one, e.g. decoder='margin', or a list of them")
        several = [_nats_of_blocks(model, rows, block_size, build(DECODERS, spec, "decoder")) for spec in specs]
        blocks = torch.stack(several).amin(0)
        return Likelihood.without_noise(blocks.sum(1), rows, "policy", blocks)


@dataclass(frozen=True)
class Importance(LikelihoodMethod):
    """The importance-weighted bound from `draws` random orders of each row, which are a function of its content.

    Its error is that of the mean over orders, to first order.
    """

    relation: ClassVar[str] = BOUND
    is_exact_at_1: ClassVar[bool] = True

    def nll(self, model: Transformer, rows: Rows, block_size: int, draws: int | str = 1, seed: int = 0) -> Likelihood:
        n_orders = int(draws)
        log_p = _of_random_orders(model, rows, block_size, n_orders, seed)
        mean = log_p.logsumexp(1) - math.log(n_orders)  # (b, g)
        nll = -mean.sum(1)
        if n_orders == 1:
            return Likelihood(nll, torch.full_like(nll, torch.nan), rows.n_targets, "importance")
        relative = (log_p - mean[:, None]).exp().var(1) / n_orders
        return Likelihood(nll, relative.sum(1).sqrt(), rows.n_targets, "importance")


def _of_random_orders(model: Transformer, rows: Rows, block_size: int, n_orders: int, seed: int) -> Tensor:
    """(b, K, g) float64: log p of each block in each order."""
    tokens = rows.tokens
    rank = target_ranks(rows.content_keys(seed), rows.is_target, block_size, n_orders)  # (b, K, g, B)
    targets = block_view(rows.is_target, block_size, False)[:, None]
    parts = []
    for some in rank.split(ORDERS_PER_FORWARD, dim=1):
        log_p = torch.zeros(some.shape[:3], dtype=torch.float64, device=tokens.device)
        for step in range(int(targets.sum(-1).max())):
            masked = ((some >= step) & targets).flatten(2)[..., : tokens.shape[1]]
            revealed = ((some == step) & targets).flatten(2)[..., : tokens.shape[1]]
            hidden = two_stream_hidden(model, tokens, masked, block_size, rows.documents)
            row, _, position = revealed.nonzero(as_tuple=True)
            losses = torch.zeros(masked.shape, dtype=torch.float64, device=tokens.device)
            losses[revealed] = cross_entropies(
                hidden[revealed[masked]], model.head_matrix(), tokens[row, position], model.banned_token_id
            ).double()
            log_p -= block_view(losses, block_size, 0.0).sum(-1)
        parts.append(log_p)
    return torch.cat(parts, dim=1)


def _nats_of_blocks(model: Transformer, rows: Rows, block_size: int, decoder: Decoder) -> Tensor:
    """(b, g) float64, few rows at a time, which bounds the memory."""
    return torch.cat([_Walk(model, part, block_size).follow(decoder) for part in _chunks(rows)])


def _chunks(rows: Rows) -> Iterator[Rows]:
    size = max(1, ROWS_PER_FORWARD // (2 * rows.tokens.shape[1]))
    for start in range(0, len(rows.tokens), size):
        some = slice(start, start + size)
        documents = None if rows.documents is None else rows.documents[some]
        yield Rows(rows.tokens[some], rows.is_target[some], documents)


class _KnownText:
    """A prediction without candidates: there is nothing to draw, and an order that depends on draws is no policy."""

    def __init__(self, log_probs: Tensor, decoder: Decoder):
        self.log_probs, self._decoder = log_probs, decoder

    @property
    def candidates(self) -> Tensor:
        raise ValueError(
            f"decoder: the order of {self._decoder!r} depends on the tokens that it draws, so it has no exact policy "
            "likelihood; use one that depends on the distribution alone (confidence: token=best; margin; entropy)"
        )

    @property
    def confidence(self) -> Tensor:
        return self.candidates  # that of what is drawn: refused as well


class _Walk:
    """All blocks of some rows of text, side by side, on the way from all targets masked to none."""

    def __init__(self, model: Transformer, rows: Rows, block_size: int):
        self.model, self.rows, self.block_size = model, rows, block_size
        valid = torch.ones_like(rows.is_target)
        self.text = self._blocks(rows.tokens, model.mask_token_id)  # (b * g, B)
        self.is_valid = self._blocks(valid, False)
        self.is_fixed = self._blocks(valid & ~rows.is_target, False)

    def _blocks(self, values: Tensor, fill: Any) -> Tensor:
        """(b, N) -> (b * g, B)"""
        return block_view(values, self.block_size, fill).flatten(0, 1)

    def follow(self, decoder: Decoder) -> Tensor:
        """(b, g) float64 nats of the blocks in the order of the decoder."""
        if has_own_loop(decoder):
            raise ValueError(
                f"decoder: {decoder!r} writes from the left, not in an order of blocks, so its texts have no policy "
                "likelihood; use another"
            )
        needs("decoder", decoder, "start", "select")
        masked = self._blocks(self.rows.is_target, False)
        nll = torch.zeros(len(masked), dtype=torch.float64, device=masked.device)
        step, state, patience = 0, None, Patience(decoder, self.block_size)
        left = int(masked.count_nonzero())
        while left:
            view = self._view(decoder, masked, step)
            if step == 0:
                state = decoder.start(view)
            reveal, remask, own = choose(decoder, view, state)
            if own is not None:
                view.read(masked, masked)  # refused
            if remask is not None and bool((remask & ~view.is_masked & self.is_valid & ~self.is_fixed).any()):
                raise ValueError(
                    f"decoder: {decoder!r} re-masks tokens, so its texts have no exact policy likelihood; use another"
                )
            reveal = reveal & masked
            n = int(reveal.count_nonzero())
            patience.count(n > 0, remasks=False)
            if n:
                chosen = Places(reveal, n)
                log_probs = view.prediction.log_probs.index_select(0, chosen.within(Places(masked)))
                of_text = log_probs.gather(-1, chosen.take(self.text)[:, None]).squeeze(-1).double()
                nll.index_add_(0, chosen.rows, -of_text)
                masked, left = masked & ~reveal, left - n
            step += 1
        return nll.view(len(self.rows.tokens), -1)

    def _view(self, decoder: Decoder, masked: Tensor, step: int) -> View:
        def draw() -> Tensor:
            raise ValueError(
                f"decoder: the order of {decoder!r} is random, so it has no policy likelihood; use 'bound', "
                "'enumerate' or 'importance', which are those of a uniformly random order"
            )

        def forward() -> Any:
            flat = masked.view(len(self.rows.tokens), -1)[:, None, : self.rows.tokens.shape[1]]
            hidden = two_stream_hidden(self.model, self.rows.tokens, flat, self.block_size, self.rows.documents)
            logits = self.model.head(hidden)
            log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
            return _KnownText(log_probs, decoder)

        def read(*_: Any, **__: Any) -> Tensor:
            raise ValueError(
                f"decoder: {decoder!r} draws tokens itself, so its texts have no exact policy likelihood; use another"
            )

        tokens = self.text.masked_fill(masked, self.model.mask_token_id)
        # A planner weighs candidates, and reading those is refused.
        return View(
            step, tokens, masked, self.is_fixed, self.is_valid, draw, forward, lambda candidates: candidates, read
        )
