"""Steps of a teacher: it writes tokens into masked blocks, as in generation, and what it predicts is a target.

Shape legend: b rows, D noise draws, N text length, g blocks, B block size, m masked tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hybrid import rng
from hybrid.device import send
from hybrid.model import Transformer
from hybrid.model.two_stream import two_stream_hidden
from hybrid.objectives.noise import NoiseKeys, block_view, latent_noise, position_uniforms, ranks
from hybrid.options import at_least, at_most

if TYPE_CHECKING:
    from hybrid.data.batches import Batch

MAX_COUNT = 2**24
"""Of steps, and of tokens a step: as many as a row may have."""


def check_steps(**counts: int) -> None:
    """Raise a ValueError unless these are from 1 to MAX_COUNT."""
    for name, count in counts.items():
        at_least(name, count, 1)
        at_most(name, count, MAX_COUNT)


def log_probs_of(model: Transformer, hidden: Tensor, banned: int | None = None) -> Tensor:
    """(m, dim) -> (m, V) log-probabilities, at least in float32; `banned` is a further id that has none."""
    logits = model.head(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if banned is not None:
        logits = logits.index_fill(-1, torch.tensor([banned], device=logits.device), -torch.inf)
    return logits.log_softmax(-1)


def reveal_ranks(noise: NoiseKeys, masked: Tensor, block_size: int) -> Tensor:
    """Rank the masked tokens of each block, 0, 1, ..., in a random order of their own; others behind: (b, D, N)."""
    scores = position_uniforms(noise, masked.shape[-1], masked.shape[1], rng.ORDER + rng.FURTHER)
    scores = block_view(scores.masked_fill(~masked, 2.0), block_size, 3.0)
    return ranks(scores).flatten(2)[..., : masked.shape[-1]]


@dataclass(frozen=True)
class TeacherCanvas:
    """Texts of a batch between two steps of a teacher. Masks are where the batch is, ids where the teacher is."""

    teacher: Transformer
    batch: Batch
    noise: NoiseKeys
    block_size: int
    banned: int | None  # an id that has no probability, though the teacher may have learned to predict it
    rank: Tensor  # (b, D, N), when the masked tokens of a block are revealed
    masked: Tensor  # (b, D, N) booleans
    tokens: Tensor  # (b, D, N) ids, which mean something where nothing is masked
    done: int = 0  # how many of a block have been revealed, where it had so many

    @classmethod
    def of(
        cls, teacher: Transformer, batch: Batch, masked: Tensor, noise: NoiseKeys, block_size: int,
        banned: int | None = None,
    ) -> TeacherCanvas:  # fmt: skip
        """Start from the texts, in which the tokens `masked` (b, D, N) are masked."""
        tokens = send(batch.tokens, teacher.device)[:, None].expand(masked.shape)
        rank = reveal_ranks(noise, masked, block_size)
        return cls(teacher, batch, noise, block_size, banned, rank, masked, tokens)

    def ids(self, mask_token_id: int) -> Tensor:
        """(b, D, N) ids as a model reads them."""
        return self.tokens.masked_fill(send(self.masked, self.tokens.device), mask_token_id)

    @torch.no_grad()
    def predict(self) -> Tensor:
        """Return log-probabilities of the tokens that are masked, (s, V), in the order of `masked.nonzero()`.

        Those of a teacher with a latent are given a draw of it, another one at each step, as in generation.
        """
        z, (_, draws, length) = None, self.masked.shape
        if self.teacher.config.latent:
            first = -(1 + self.done) * draws  # the draws of a student are numbered from 0 on
            z = latent_noise(self.noise, self.teacher.config, length, self.block_size, draws, first)
        hidden = two_stream_hidden(
            self.teacher, self.batch.tokens, self.masked, self.block_size, self.batch.documents,
            canvas=self.ids(self.teacher.mask_token_id), latent=z,
        )  # fmt: skip
        return log_probs_of(self.teacher, hidden, self.banned)

    def reveal(self, log_probs: Tensor, count: int) -> TeacherCanvas:
        """Take a step: reveal the next `count` tokens of each block, or what is left, drawn from what was predicted.

        Tokens are drawn independently, as in a step of generation, in float64 and one uniform each.
        """
        revealed = self.masked & (self.rank < self.done + count)
        rows, places = (
            send(flags.nonzero(as_tuple=True)[0], self.tokens.device)
            for flags in (revealed[self.masked], revealed.flatten())
        )
        purpose = rng.TOKEN + self.done * rng.FURTHER
        uniforms = position_uniforms(self.noise, revealed.shape[-1], revealed.shape[1], purpose)[revealed]
        drawn = rng.categorical(log_probs[rows].double(), send(uniforms, self.tokens.device))
        tokens = self.tokens.flatten().index_copy(0, places, drawn).view(revealed.shape)
        return replace(self, masked=self.masked & ~revealed, tokens=tokens, done=self.done + count)


def teacher_targets(start: TeacherCanvas, steps: int, per_step: int) -> Tensor:
    """Return log-probabilities (m, V) that the teacher gives each masked token, in the order of `masked.nonzero()`.

    They are those of the step that reveals it; those of the last step where it is masked still.
    """
    canvas, log_probs = start, start.predict()
    targets = log_probs
    for _ in range(steps - 1):
        canvas = canvas.reveal(log_probs, per_step)
        if not canvas.masked.any():
            break
        log_probs = canvas.predict()
        still = send(canvas.masked[start.masked].nonzero(as_tuple=True)[0], targets.device)
        targets = targets.index_copy(0, still, log_probs)
    return targets
