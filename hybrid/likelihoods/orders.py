"""Likelihoods of decoding orders: what a model assigns to a text when its tokens are revealed in a given order.

`policy`      the exact likelihood of model and deterministic decoder together (DUEL, 2603.01367): follow the decoder on
              the text itself and multiply the probabilities of what it reveals. Of several decoders: the best of them
              for each block in hindsight.
`best_order`  the best of all orders of each block in hindsight, one token at a time (enumerated). No decoder reaches
              it: the order is chosen knowing the text.
`importance`  -log of the mean over K random orders of p(x | order), per block: the bound at K = 1, the exact any-order
              likelihood (`enumerate`) as K grows; in between a bound that is tighter with every order (Burda et al.
              1509.00519, with the order as the latent variable).

Shape legend: b rows, K orders, N text length, g blocks, B block size, m masked tokens, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hybrid import rng
from hybrid.decoding import DECODERS, Decoder
from hybrid.decoding.decoder import View
from hybrid.decoding.engine import MAX_IDLE_STEPS
from hybrid.likelihoods.likelihood import ROWS_PER_FORWARD, Likelihood, best_order_nll, check_enumerable, mask_table
from hybrid.model import Transformer
from hybrid.model.kernels.cross_entropy import cross_entropies
from hybrid.model.two_stream import two_stream_hidden
from hybrid.objectives.noise import NoiseKeys, block_view, target_ranks
from hybrid.options import build

METHODS = ("policy", "best_order", "importance")

ORDERS_PER_FORWARD = 8
"""Orders that share one clean pass; bounds the memory."""


def order_nll(
    model: Transformer, tokens: Tensor, block_size: int, method: str, decoder: Any = None, draws: int = 1,
    seed: int = 0, documents: Tensor | None = None, is_target: Tensor | None = None,
) -> Likelihood:  # fmt: skip
    """Likelihood of each row of `tokens` (b, N) by one of METHODS.

    Args:
        decoder: policy: a name, a mapping with options, an instance, or a list of these.
        draws: importance: the number of orders K.
        is_target: (b, N), the tokens that count; the others are given.

    Raises:
        ValueError: policy: no decoder, one that draws or re-masks; best_order: a block too long to enumerate.
    """
    if method == "policy":
        return policy_nll(model, tokens, block_size, decoder, documents, is_target)
    is_target = torch.ones_like(tokens, dtype=torch.bool) if is_target is None else is_target
    if method == "importance":
        return _importance(model, tokens, block_size, draws, seed, documents, is_target)
    check_enumerable(min(block_size, tokens.shape[1]))
    blocks = mask_table(model, tokens, block_size, documents, is_target)
    nll = torch.stack([best_order_nll(table, target) for table, target in blocks]).sum(0)
    return Likelihood(nll, torch.zeros_like(nll), is_target.sum(1), method)


def policy_nll(
    model: Transformer, tokens: Tensor, block_size: int, decoder: Any, documents: Tensor | None = None,
    is_target: Tensor | None = None,
) -> Likelihood:  # fmt: skip
    """Exact NLL of each row under the model in the order of `decoder` (of several: for each block, of the best one).

    Several tokens revealed in one step count as independent draws, as they are when generating at temperature 1.

    Raises:
        ValueError: no decoder, or one whose order is random, depends on the tokens that it draws, or is revised.
    """
    is_target = torch.ones_like(tokens, dtype=torch.bool) if is_target is None else is_target
    specs = decoder if isinstance(decoder, (list, tuple)) else [decoder]
    if not specs or specs == [None]:
        raise ValueError("decoder: method 'policy' needs one, e.g. decoder='margin', or a list of them")
    several = [
        torch.cat(
            [
                _Walk(model, part, block_size, target, document).follow(build(DECODERS, spec, "decoder"))
                for part, target, document in _chunks(tokens, is_target, documents)
            ]
        )
        for spec in specs
    ]
    blocks = torch.stack(several).amin(0)
    nll = blocks.sum(1)
    return Likelihood(nll, torch.zeros_like(nll), is_target.sum(1), "policy", blocks)


def _chunks(tokens: Tensor, is_target: Tensor, documents: Tensor | None):
    size = max(1, ROWS_PER_FORWARD // (2 * tokens.shape[1]))
    parts = None if documents is None else documents.split(size)
    for i, (part, target) in enumerate(zip(tokens.split(size), is_target.split(size), strict=True)):
        yield part, target, None if parts is None else parts[i]


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

    def __init__(
        self, model: Transformer, tokens: Tensor, block_size: int, is_target: Tensor, documents: Tensor | None
    ):
        self.model, self.tokens, self.block_size, self.documents = model, tokens, block_size, documents
        self.is_target = is_target
        valid = torch.ones_like(is_target)
        self.text = self._blocks(tokens, model.mask_token_id)  # (b * g, B)
        self.is_valid = self._blocks(valid, False)
        self.is_fixed = self._blocks(valid & ~is_target, False)

    def _blocks(self, rows: Tensor, fill: Any) -> Tensor:
        return block_view(rows, self.block_size, fill).flatten(0, 1)

    def follow(self, decoder: Decoder) -> Tensor:
        """(b, g) float64 nats of the blocks in the order of the decoder."""
        masked = self._blocks(self.is_target, False)
        nll = torch.zeros(len(masked), dtype=torch.float64, device=masked.device)
        step, idle, state = 0, 0, None
        while bool(masked.any()):
            view = self._view(decoder, masked, step)
            if step == 0:
                state = decoder.start(view)
            reveal, remask, *own = decoder.select(view, state)
            if own:
                view.read(masked, masked)  # refused
            if remask is not None and bool((remask & ~view.is_masked & self.is_valid & ~self.is_fixed).any()):
                raise ValueError(
                    f"decoder: {decoder!r} re-masks tokens, so its texts have no exact policy likelihood; use another"
                )
            reveal = reveal & masked
            if bool(reveal.any()):
                log_probs = view.prediction.log_probs[reveal[masked]]
                chosen = log_probs.gather(-1, self.text[reveal][:, None]).squeeze(-1).double()
                nll.index_add_(0, reveal.nonzero()[:, 0], -chosen)
                masked = masked & ~reveal
                idle = 0
            else:
                idle += 1
            if idle > MAX_IDLE_STEPS:
                raise ValueError(f"decoder: {decoder!r} revealed nothing in {idle} steps; select must make progress")
            step += 1
        return nll.view(len(self.tokens), -1)

    def _view(self, decoder: Decoder, masked: Tensor, step: int) -> View:
        def draw() -> Tensor:
            raise ValueError(
                f"decoder: the order of {decoder!r} is random, so it has no policy likelihood; use 'bound', "
                "'enumerate' or 'importance', which are those of a uniformly random order"
            )

        def forward() -> Any:
            flat = masked.view(len(self.tokens), -1)[:, None, : self.tokens.shape[1]]
            hidden = two_stream_hidden(self.model, self.tokens, flat, self.block_size, self.documents)
            logits = self.model.head(hidden)
            log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
            return _KnownText(log_probs, decoder)

        def read(*_: Any) -> Tensor:
            raise ValueError(
                f"decoder: {decoder!r} draws tokens itself, so its texts have no exact policy likelihood; use another"
            )

        tokens = self.text.masked_fill(masked, self.model.mask_token_id)
        # A planner weighs candidates, and reading those is refused.
        return View(
            step, tokens, masked, self.is_fixed, self.is_valid, draw, forward, lambda candidates: candidates, read
        )


def _importance(
    model: Transformer, tokens: Tensor, block_size: int, n_orders: int, seed: int, documents: Tensor | None,
    is_target: Tensor,
) -> Likelihood:  # fmt: skip
    """The importance-weighted bound; its error is that of the mean over orders, to first order."""
    keys = torch.tensor(rng.row_keys(tokens.tolist()), device=tokens.device)
    rank = target_ranks(NoiseKeys.of_rows(seed, keys), is_target, block_size, n_orders)  # (b, K, g, B)
    targets = block_view(is_target, block_size, False)[:, None]
    parts = []
    for some in rank.split(ORDERS_PER_FORWARD, dim=1):
        log_p = torch.zeros(some.shape[:3], dtype=torch.float64, device=tokens.device)
        for step in range(int(targets.sum(-1).max())):
            masked = ((some >= step) & targets).flatten(2)[..., : tokens.shape[1]]
            revealed = ((some == step) & targets).flatten(2)[..., : tokens.shape[1]]
            hidden = two_stream_hidden(model, tokens, masked, block_size, documents)
            row, _, position = revealed.nonzero(as_tuple=True)
            losses = torch.zeros(masked.shape, dtype=torch.float64, device=tokens.device)
            losses[revealed] = cross_entropies(
                hidden[revealed[masked]], model.head_matrix(), tokens[row, position], model.banned_token_id
            ).double()
            log_p -= block_view(losses, block_size, 0.0).sum(-1)
        parts.append(log_p)
    log_p = torch.cat(parts, dim=1)  # (b, K, g)
    mean = log_p.logsumexp(1) - math.log(n_orders)  # (b, g)
    nll = -mean.sum(1)
    if n_orders == 1:
        return Likelihood(nll, torch.full_like(nll, torch.nan), is_target.sum(1), "importance")
    relative = (log_p - mean[:, None]).exp().var(1) / n_orders
    return Likelihood(nll, relative.sum(1).sqrt(), is_target.sum(1), "importance")
