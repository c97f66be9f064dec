"""Di4C: what a block learns, block by block, whatever the batch; what the model's own law of later steps is."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from toy import random_tokens, toy_model

from hybrid.data.batches import Batch
from hybrid.model import Transformer
from hybrid.model.two_stream import two_stream_hidden
from hybrid.objectives import build_objective
from hybrid.objectives.build import ObjectiveConfig
from hybrid.objectives.di4c import Di4C, Reader
from hybrid.objectives.divergences import kl_forward
from hybrid.objectives.noise import NoiseKeys, block_view
from hybrid.objectives.teacher import TeacherCanvas


def latent_model(scale: float, vocab: int = 7) -> Transformer:
    model = toy_model(vocab=vocab, latent=3)
    with torch.no_grad():
        assert model.latent_weight is not None
        model.latent_weight.copy_(
            scale * torch.randn(model.latent_weight.shape, generator=torch.Generator().manual_seed(0))
        )
    return model


def di4c(teacher: Transformer, **options) -> Di4C:
    return build_objective(ObjectiveConfig(name={"name": "di4c", **options}, draws=2, teacher="a run"), teacher)  # type: ignore


def batch_of(rows: int, length: int = 10, vocab: int = 7) -> Batch:
    return Batch(random_tokens(rows, length, vocab=vocab), torch.ones(rows, length, dtype=torch.bool))


@pytest.mark.parametrize("small", [0, 2, 4])
def test_without_a_latent_it_is_a_divergence_of_marginals(small: int) -> None:
    """All latents alike: the consistency and the data are KLs of each token, and the rest of both is 0.

    A batch has blocks of both kinds at once, those with at most `small` masked tokens and those with more.
    """
    teacher, model, batch, noise = (
        toy_model(seed=1),
        latent_model(0.0),
        batch_of(3),
        NoiseKeys(0, 2, torch.arange(3), 0, 3),
    )
    objective = di4c(teacher, latents=3, per_step=1, small=small, correlation=5.0)
    masking = objective.draw(batch, noise, 4)
    masked = masking.masked
    before = TeacherCanvas.of(teacher, batch, masked, noise, 4)
    after = before.reveal(before.predict(), 1)

    def read(canvas: TeacherCanvas) -> Tensor:
        log_probs = torch.zeros(*masked.shape, 7, dtype=torch.float64)
        ids = canvas.ids(model.mask_token_id)
        hidden = two_stream_hidden(model, batch.tokens, canvas.masked, 4, canvas=ids)
        log_probs[canvas.masked] = model.head(hidden).log_softmax(-1)
        return log_probs

    now, later = read(before), read(after)
    theirs = torch.zeros_like(now)
    theirs[masked] = before.predict()
    written = -now.gather(-1, after.tokens[..., None])[..., 0]  # KL of what the teacher has revealed
    consistency = torch.where(after.masked, kl_forward(later, now), written)
    is_small = (block_view(masked, 4, False).sum(-1, keepdim=True) <= small).expand(-1, -1, -1, 4).flatten(2)[..., :10]
    distilled = kl_forward(theirs, now)
    each = torch.where(is_small, distilled, consistency) + distilled
    got = objective.loss(model, batch, noise, 4)
    torch.testing.assert_close(got.total, (each * masked * masking.weight).sum() / 2)
    assert (got.logged["consistency"] == 0) == (small == 4) and (got.logged["distillation"] == 0) == (small == 0)


def test_the_dependence_in_the_data_counts_more_where_much_is_masked():
    """correlation / (1 + exp(-20 (t - 1/2))) of log p(x) - sum_l log p_l(x_l), for t the masked share of a block."""
    teacher, model, batch = toy_model(seed=1), latent_model(1.0), batch_of(4)
    noise = NoiseKeys(0, 2, torch.arange(4), 0, 4)
    without, with_it = (di4c(teacher, latents=3, correlation=c) for c in (0.0, 0.5))
    masking = without.draw(batch, noise, 4)
    start = TeacherCanvas.of(teacher, batch, masking.masked, noise, 4)
    data = batch.tokens[:, None].expand(masking.masked.shape)[masking.masked]
    dependence = Reader(model, batch, noise, 4, 3).read(start).correlation(data).view(4, 2, 3)
    n = block_view(masking.masked, 4, False).sum(-1)  # of blocks of 4, 4 and 2 tokens
    share = n / torch.tensor([4, 4, 2])
    weight = block_view(masking.weight, 4, 0.0)[..., 0] / 2
    expected = -(weight * 0.5 / (1 + (-20 * (share - 0.5)).exp()) * dependence).sum()
    got = [objective.loss(model, batch, noise, 4).logged["data"] for objective in (without, with_it)]
    torch.testing.assert_close(got[1] - got[0], expected.detach())
    assert expected.abs() > 0.1


def test_ranks_draw_different_noise():
    """Two ranks with the same texts: other masks, other tokens of the teacher, other latents, other samples."""
    teacher, model, batch = toy_model(seed=1), latent_model(1.0), batch_of(2)
    objective = di4c(teacher, latents=2)
    seen = []
    for first in (0, 2):
        noise = NoiseKeys(0, 1, torch.arange(first, first + 2), first, 4)
        everything = torch.ones(2, 2, 10, dtype=torch.bool)
        start = TeacherCanvas.of(teacher, batch, everything, noise, 5)
        after = start.reveal(start.predict(), 2)
        reader = Reader(model, batch, noise, 5, 2)
        samples, _ = reader.continuations(start, after)
        counts = objective.draw(batch, noise, 5).masked
        seen.append((counts, after.masked, after.tokens, reader.read(start).log_probs, samples))
    for mine, theirs in zip(*seen, strict=True):
        assert not torch.equal(mine, theirs)


def test_the_models_own_law_of_later_steps():
    """Texts of two ids: the teacher reveals one at random, the model the other, given it; 4.5 standard errors (false
    alarm 7e-5). They are no part of the gradient."""
    teacher, model, n = toy_model(seed=1, vocab=3), latent_model(0.0, vocab=3), 3000
    everything = torch.ones(n, 1, 2, dtype=torch.bool)
    batch = Batch(torch.zeros(n, 2, dtype=torch.long), everything[:, 0])
    noise = NoiseKeys.of_rows(0, torch.arange(n))
    start = TeacherCanvas.of(teacher, batch, everything, noise, 2)
    after = start.reveal(start.predict(), 1)
    samples, log_marginals = Reader(model, batch, noise, 2, 2).continuations(start, after)
    first = start.predict().exp().view(n, 2, 3)[0]
    law = torch.zeros(3, 3, dtype=torch.float64)
    for place, token in itertools.product(range(2), range(3)):
        text = torch.full((1, 2), token)
        masked = (torch.arange(2) != place)[None, None]
        second = model.head(two_stream_hidden(model, text, masked, 2)).softmax(-1)[0].detach()
        mass = first[place, token] * second / 2
        if place == 0:
            law[token] += mass
        else:
            law[:, token] += mass
    pairs = samples.view(-1, n, 2)  # (M, rows, 2)
    assert not torch.equal(pairs[0], pairs[1]) and not log_marginals.requires_grad
    for sample in pairs:
        share = torch.bincount(3 * sample[:, 0] + sample[:, 1], minlength=9).view(3, 3) / n
        assert ((share - law).abs() <= 4.5 * (law * (1 - law) / n) ** 0.5).all()
    torch.testing.assert_close(log_marginals.exp().sum(-1), torch.ones(2 * n, dtype=torch.float64))


def test_latents_of_samples_are_others_than_those_that_score():
    """Else a sample would be scored by the part of the mixture that has drawn it."""
    model, batch, noise = latent_model(1.0), batch_of(1, 4), NoiseKeys.of_rows(0, torch.arange(1))
    start = TeacherCanvas.of(toy_model(), batch, torch.ones(1, 1, 4, dtype=torch.bool), noise, 4)
    reader = Reader(model, batch, noise, 4, 2)
    _, log_marginals = reader.continuations(start, start)
    assert not torch.allclose(log_marginals, reader.read(start).log_marginals().detach())


@pytest.mark.parametrize(("option", "value"), [("latents", 1), ("per_step", 0), ("small", -1), ("correlation", -1.0)])
def test_what_cannot_be_is_refused(option: str, value: float) -> None:
    """One latent too: a mixture of one product has no dependence."""
    with pytest.raises(ValueError, match=f"objective.name.{option}: {value} is too small; it must be at least"):
        di4c(toy_model(), **{option: value})


@pytest.mark.parametrize("option", ["latents", "per_step"])
def test_what_is_too_large_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"objective.name.{option}: {10**21} is too large; it must be at most"):
        di4c(toy_model(), **{option: 10**21})


@pytest.mark.parametrize("name", ["latent", "di4c"])
def test_tokens_of_a_block_weigh_the_same(name: str) -> None:
    config = ObjectiveConfig(name=name, weighting="cart", teacher="a run" if name == "di4c" else None)
    with pytest.raises(ValueError, match=f"objective.weighting: cart weighs .* objective.name = {name} scores them"):
        build_objective(config, toy_model())
