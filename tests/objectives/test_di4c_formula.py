"""Di4C with a latent that is read: its loss block by block, each part of the mixture in a pass of its own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from toy import latent_model, random_tokens, toy_model

from hybrid import rng
from hybrid.data.batches import Batch
from hybrid.model.two_stream import two_stream_hidden
from hybrid.objectives import build_objective
from hybrid.objectives.build import ObjectiveConfig
from hybrid.objectives.noise import NoiseKeys, latent_noise, position_uniforms
from hybrid.objectives.teacher import TeacherCanvas

ROWS, LENGTH, V, DRAWS, M = 2, 10, 7, 2, 3


def mean(log_probs: Tensor) -> Tensor:
    """log of the mean over the parts of a mixture (M, ...)."""
    return log_probs.logsumexp(0) - math.log(M)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * torch.where(log_p.isfinite(), log_p - log_q, 0.0)).sum()


def dependence(parts: Tensor, ids: Tensor) -> Tensor:
    """log p(x) - sum_l log p_l(x_l) of ids (n,) in a mixture of products (M, n, V)."""
    each = parts.gather(-1, ids.expand(M, -1)[..., None])[..., 0]
    return mean(each.sum(-1)) - mean(each).sum()


def parts_of(model, canvas: TeacherCanvas, first: int) -> Tensor:
    """(M, rows, draws, N, V) log-probabilities where the canvas is masked; the draws of z are numbered from `first`."""
    z = latent_noise(canvas.noise, model.config, LENGTH, canvas.block_size, DRAWS * M, first)
    parts = torch.zeros(M, ROWS, DRAWS, LENGTH, V, dtype=torch.float64)
    for d in range(DRAWS):
        masked, ids = canvas.masked[:, d : d + 1], canvas.ids(model.mask_token_id)[:, d : d + 1]
        for m in range(M):
            latent = z[:, [d * M + m]]
            hidden = two_stream_hidden(
                model, canvas.batch.tokens, masked, canvas.block_size, canvas=ids, latent=latent
            )  # fmt: skip
            parts[m, :, d][masked[:, 0]] = model.head(hidden).log_softmax(-1).detach()
    return parts


@pytest.mark.parametrize(("size", "small", "per_step"), [(4, 2, 1), (5, 1, 3)])
def test_the_loss_is_the_formula(size: int, small: int, per_step: int) -> None:
    """Samples of every part, marginals of them all, the mean of the divergences of parts in small blocks."""
    teacher, model, batch = (
        toy_model(seed=1),
        latent_model(),
        Batch(random_tokens(ROWS, LENGTH), torch.ones(ROWS, LENGTH) > 0),
    )
    noise = NoiseKeys(0, 2, torch.arange(ROWS), 0, ROWS)
    name = {"name": "di4c", "latents": M, "per_step": per_step, "small": small, "correlation": 0.7}
    objective = build_objective(ObjectiveConfig(name=name, draws=DRAWS, teacher="a run"), teacher)
    masking = objective.draw(batch, noise, size)
    before = TeacherCanvas.of(teacher, batch, masking.masked, noise, size)
    after = before.reveal(before.predict(), per_step)
    now, later = parts_of(model, before, 0), parts_of(model, after, DRAWS * M)
    theirs = torch.zeros(ROWS, DRAWS, LENGTH, V, dtype=torch.float64)
    theirs[masking.masked] = before.predict()
    u = position_uniforms(noise, LENGTH, DRAWS * M, rng.TOKEN + rng.FURTHER * LENGTH).unflatten(1, (-1, M))
    samples = torch.where(after.masked, rng.categorical(later, u.movedim(2, 0).contiguous()), after.tokens)
    known = torch.full_like(theirs, -torch.inf).scatter(-1, after.tokens[..., None], 0.0)
    q = torch.where(after.masked[..., None], mean(later), known)
    expected, kinds = torch.zeros((), dtype=torch.float64), set()
    for row, d, first in ((r, d, f) for r in range(ROWS) for d in range(DRAWS) for f in range(0, LENGTH, size)):
        block = row, d, slice(first, first + size)
        masked = masking.masked[block]
        n = int(masked.sum())
        if n == 0:
            continue
        kinds.add(n <= small)
        parts, teaches = now[:, *block][:, masked], theirs[block][masked]
        if n <= small:
            loss = torch.stack([kl(teaches, part) for part in parts]).mean()
        else:
            loss = kl(q[block][masked], mean(parts))
            loss = loss - torch.stack([dependence(parts, s[block][masked]) for s in samples]).mean()
        weight = 0.7 / (1 + math.exp(-20 * (n / len(masked) - 0.5)))
        data = batch.tokens[row, block[2]][masked]
        loss = loss + kl(teaches, mean(parts)) - weight * dependence(parts, data)
        expected += masking.weight[block][masked][0] / DRAWS * loss
    assert kinds == {True, False}
    torch.testing.assert_close(objective.loss(model, batch, noise, size).total.detach(), expected)
