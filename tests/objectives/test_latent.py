"""The mixture over random numbers in MASK: the loss is its formula, and without weights it is the plain one."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from toy import MODES, latent_model, random_tokens, toy_model

from hybrid.data.batches import Batch
from hybrid.model.two_stream import two_stream_hidden
from hybrid.objectives.cross_entropy import MaskedCrossEntropy
from hybrid.objectives.estimators import Time
from hybrid.objectives.latent import Latent
from hybrid.objectives.noise import NoiseKeys, latent_noise
from hybrid.objectives.weightings import PlainCrossEntropy


def batch_of(rows: int = 4) -> Batch:
    return Batch(random_tokens(rows, 10), torch.rand(rows, 10, generator=torch.Generator().manual_seed(1)) < 0.8)


def noise_of(rows: int = 4) -> NoiseKeys:
    return NoiseKeys(0, 3, torch.arange(rows), 0, rows)


def total_and_gradient(objective, model, **noise) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    loss = objective.loss(model, batch_of(), noise_of(), 4)
    of = [p for name, p in model.named_parameters() if name != "latent_weight"]
    return loss.total.detach(), list(torch.autograd.grad(loss.total, of)), loss.logged.get("latent_kl")


@pytest.mark.parametrize("mode", MODES)
def test_with_weights_of_zero_it_is_the_plain_loss(mode) -> None:
    """Of one draw bit for bit, its gradient too; of several to rounding, for any share of the rows."""
    for dtype in (torch.float32, torch.float64):
        model = toy_model(*mode, latent=2, dtype=dtype)
        plain, gradient, _ = total_and_gradient(MaskedCrossEntropy(draws=2), model)
        one, own, kl = total_and_gradient(Latent(draws=2, latents=1, share=1.0), model)
        assert torch.equal(one, plain) and all(map(torch.equal, own, gradient)) and kl == 0
        for share in (1.0, 0.5):
            total, own, kl = total_and_gradient(Latent(draws=2, latents=5, share=share), model)
            assert kl == pytest.approx(0, abs=1e-4)
            torch.testing.assert_close(total, plain)
            for a, b in zip(own, gradient, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("per", ["block", "position"])
@pytest.mark.parametrize("estimator", ["count", "time"])
def test_it_is_the_formula(estimator, per) -> None:
    """Value and gradient of sum_blocks w -log (1/M) sum_m prod p, with autograd alone."""
    model, batch, noise = latent_model(latent_per=per), batch_of(), noise_of()
    options = {"draws": 2, "weighting": PlainCrossEntropy(), **({"estimator": Time()} if estimator == "time" else {})}
    objective = Latent(latents=3, share=1.0, **options)
    masking = objective.draw(batch, noise, 4)
    z = latent_noise(noise, model.config, 10, 4, 2 * 3)
    expected = torch.zeros((), dtype=torch.float64)
    for d in range(2):
        masked, products = masking.masked[:, d : d + 1], []
        for m in range(3):
            log_p = model.head(two_stream_hidden(model, batch.tokens, masked, 4, latent=z[:, [3 * d + m]])).log_softmax(
                -1
            )
            of_text = torch.zeros(4, 12, dtype=torch.float64)
            of_text[:, :10][masked[:, 0]] = log_p.gather(-1, batch.tokens[masked[:, 0]][:, None]).squeeze(-1)
            products.append(of_text.view(4, 3, 4).sum(-1))  # (rows, blocks)
        joint = torch.stack(products).logsumexp(0) - math.log(3)
        weight = torch.zeros(4, 12, dtype=torch.float64)
        weight[:, :10] = masking.weight[:, d] * masking.masked[:, d]
        expected = expected - (joint * weight.view(4, 3, 4).amax(-1)).sum() / 2
    loss = objective.loss(model, batch, noise, 4)
    torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=0)
    assert 0 < loss.logged["latent_kl"] < loss.total
    every = list(model.parameters())
    for own, wanted in zip(torch.autograd.grad(loss.total, every), torch.autograd.grad(expected, every), strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("share", [0.25, 0.3, 0.5, 1.0])
def test_a_share_of_the_rows_has_random_numbers(share: float) -> None:
    """The same rows on one rank and on two; the others have the plain loss."""
    model, batch, noise = latent_model(), batch_of(8), noise_of(8)
    plain = MaskedCrossEntropy()
    mixed = Latent(latents=2, share=share)

    def of(objective, row: int) -> float:
        part = Batch(batch.tokens[row : row + 1], batch.is_target[row : row + 1])
        return float(objective.loss(model, part, NoiseKeys(0, 3, torch.tensor([row]), row, 8), 4).total.detach())

    of_rows = [(of(mixed, row), of(plain, row)) for row in range(8)]
    differ = [abs(a - b) > 1e-6 for a, b in of_rows]
    assert sum(differ) == math.floor(8 * share)
    whole = float(mixed.loss(model, batch, noise, 4).total.detach())
    assert whole == pytest.approx(sum(a for a, _ in of_rows), rel=1e-12)


def rows_with_z(share: float, step: int, total: int, first: int = 0, rows: int | None = None) -> list[bool]:
    keys = torch.arange(first, first + (total if rows is None else rows))
    return Latent(share=share)._has_z(NoiseKeys(0, step, keys, first, total))


def test_what_a_batch_leaves_over_is_counted() -> None:
    """Rows of a global batch go on from the one before, so that a small share of a small batch is drawn at times. Where
    a batch leaves nothing over every one has the same rows, those that a floor of its own share gives."""
    for share, total in ((0.1, 4), (0.3, 1), (0.9, 3), (1 / 3, 2), (0.001, 8)):
        seen = [row for step in range(1000) for row in rows_with_z(share, step, total)]
        assert sum(seen) == math.floor(1000 * total * share + 1e-9)
        parts = [rows_with_z(share, 7, total, first, 1)[0] for first in range(total)]
        assert parts == rows_with_z(share, 7, total), "whatever the ranks and the accumulation"
    for share, total in ((0.5, 4), (0.3, 10), (0.29, 100), (1 / 3, 3), (1.0, 2)):
        floors = [math.floor(i * share) for i in range(total + 1)]
        for step in (1, 2, 1001):
            assert rows_with_z(share, step, total) == [b > a for a, b in itertools.pairwise(floors)]


def test_what_cannot_be_is_refused() -> None:
    for options, message in [
        ({"latents": 0}, "latents: 0 is too small"),
        ({"share": 0.0}, r"share: 0.0 must be above 0 .* objective.name=masked"),
        ({"latents": 10**9}, "latents: 1000000000 is too large; it must be at most 65,536"),
    ]:
        with pytest.raises(ValueError, match=message):
            Latent(**options)
