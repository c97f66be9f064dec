"""Baselines of the training pass and of the engine: the same network, run as one would write it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid.data.batches import Batch
from hybrid.decoding.denoiser import LiveBlocks, Network
from hybrid.device import send
from hybrid.model import Transformer
from hybrid.model.block_pass import BlockRows
from hybrid.model.masks import Cached, Pattern, TwoStream, TwoStreamRows
from hybrid.objectives import Loss, MaskedObjective
from hybrid.objectives.estimators import Masking
from hybrid.objectives.noise import NoiseKeys


class WholeRows(TwoStreamRows):
    """Both streams with all their rows."""

    @property
    def n_clean(self) -> int:
        return self.begin + self.length


class Straightforward(TwoStream):
    """The pattern of the obvious implementation: both streams in full, every row a query in every layer."""

    @classmethod
    def of(cls, length: int, block_size: int, device: torch.device | str = "cpu") -> Straightforward:  # type: ignore[override]
        return cls(WholeRows(length, block_size), device=device)

    def reading(self) -> Straightforward:
        return self


@dataclass(frozen=True)
class Dense:
    """One attention over a dense [clean; noisy] mask."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=pattern.dense()[:, None])


@dataclass(frozen=True)
class Causal:
    """torch's causal attention."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def straightforward_loss(model: Transformer, tokens: Tensor, masking: Masking, pattern: Straightforward) -> Tensor:
    """Compute the same loss as `masked_loss` of an in-place model, with logits at all 2N positions."""
    device = model.embedding.weight.device
    tokens, masked, weight = (send(t, device) for t in (tokens, masking.masked[:, 0], masking.weight[:, 0]))
    noisy = torch.where(masked, model.mask_token_id, tokens)
    logits = model.head(model(torch.cat([tokens, noisy], dim=1), pattern))
    losses = F.cross_entropy(logits[:, tokens.shape[1] :].flatten(0, 1).float(), tokens.flatten(), reduction="none")
    return (losses.view_as(tokens) * (weight * masked)).sum()


@dataclass(frozen=True)
class StraightforwardObjective(MaskedObjective):
    """The same loss of the same noise (one draw), by the straightforward pass; its model has `Dense` attention."""

    @classmethod
    def like(cls, objective: MaskedObjective) -> StraightforwardObjective:
        return cls(**{f.name: getattr(objective, f.name) for f in dataclasses.fields(MaskedObjective)})

    def loss(self, model: Transformer, batch: Batch, noise: NoiseKeys, block_size: int) -> Loss:
        masking = self.estimator.draw(noise, batch.is_target, block_size, self.draws, self.stratified)
        pattern = Straightforward.of(batch.tokens.shape[1], block_size, device=model.embedding.weight.device)
        total = straightforward_loss(model, batch.tokens, masking, pattern)
        return Loss(total)


def causal_loss(model: Transformer, tokens: Tensor) -> Tensor:
    """Sum the cross-entropies of an autoregressive model (`next_token`, attention `Causal`)."""
    tokens = send(tokens, model.embedding.weight.device)
    inputs = F.pad(tokens[:, :-1], (1, 0), value=model.begin_token_id)
    pattern = TwoStream.of(tokens.shape[1], 1, "causal", "next_token", device=tokens.device)
    hidden = model(inputs, pattern)
    return F.cross_entropy(model.head(hidden).flatten(0, 1).float(), tokens.flatten(), reduction="sum")


@torch.no_grad()
def decode_one_by_one(model: Transformer, rows: int, n_tokens: int, seed: int = 0) -> Tensor:
    """Sample (rows, n_tokens) from an autoregressive model at temperature 1, one token and one forward at a time."""
    torch.manual_seed(seed)
    cache = model.new_cache(rows, n_tokens + 1)
    token = torch.full((rows, 1), model.begin_token_id, device=model.device)
    text = []
    for i in range(n_tokens):
        end = torch.full((1, 1), i + 1, device=model.device)
        hidden = model(token, Cached(slice(i, i + 1), cache.n_slots, end, slice(0, i + 1), unmasked=True), cache)
        token = torch.multinomial(model.head(hidden[:, 0]).float().softmax(-1), 1)
        text.append(token)
    return torch.cat(text, dim=1)


class SeparateCommit(Network):
    """Finished blocks of an in-place model are committed by a forward of their own, as most samplers do it."""

    def read(self, text: Tensor, live: LiveBlocks, tokens: Tensor, latent: Tensor | None = None) -> Tensor:
        pending = self.unread(text, live)
        if any(map(len, pending)):
            self.nfe += 1
            self.forward(BlockRows(self.cache.lengths, pending, tokens, live.n_valid).without_live(), live)
        return super().read(text, live, tokens, latent)
