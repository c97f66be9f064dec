"""A latent in MASK: random numbers that a layer, at first zero, adds to what the network reads as MASK."""

from __future__ import annotations

import pytest
import torch
from cached_pass import cached_hidden
from toy import MODES, latent_model, random_tokens, toy_model

from hybrid.model.build import n_parameters
from hybrid.model.two_stream import two_stream_hidden
from hybrid.objectives.noise import NoiseKeys, latent_noise


def some_noise(model, length: int, block_size: int, draws: int = 1, rows: int = 2, seed: int = 0):
    return latent_noise(NoiseKeys.of_rows(seed, torch.arange(rows)), model.config, length, block_size, draws)


@pytest.mark.parametrize("mode", MODES)
def test_a_fresh_model_is_what_it_is_without_a_latent(mode):
    plain, model = toy_model(*mode), toy_model(*mode, latent=3)
    assert {name for name, _ in model.named_parameters()} - {name for name, _ in plain.named_parameters()} == {
        "latent_weight"
    }
    assert model.n_parameters() == n_parameters(model.config, 7) == plain.n_parameters() + 3 * 16
    tokens, masked = random_tokens(2, 10), torch.rand(2, 2, 10, generator=torch.Generator().manual_seed(0)) < 0.5
    z = some_noise(model, 10, 4, draws=2)
    assert torch.equal(
        two_stream_hidden(model, tokens, masked, 4, latent=z), two_stream_hidden(plain, tokens, masked, 4)
    )


@pytest.mark.parametrize("per", ["block", "position"])
@pytest.mark.parametrize("mode", MODES)
def test_cached_blocks_equal_the_training_pass(mode, per):
    """Ragged, with a short last block: to 1e-12 in float64."""
    model = latent_model(*mode, latent_per=per)
    tokens, masked = random_tokens(2, 11), torch.rand(2, 11, generator=torch.Generator().manual_seed(1)) < 0.6
    z = some_noise(model, 11, 4)
    expected = torch.full((2, 11, 16), torch.nan, dtype=torch.float64)
    with torch.no_grad():
        expected[masked] = two_stream_hidden(model, tokens, masked[:, None], 4, latent=z)
        without = two_stream_hidden(model, tokens, masked[:, None], 4)
        got = cached_hidden(model, tokens, masked, 4, [0, 1], latent=z[:, 0])
    assert (expected[masked] - without).abs().max() > 0.01, "it is read"
    for row, first in enumerate([0, 4]):
        where = masked[row].clone()
        where[:first] = False
        torch.testing.assert_close(got[row, where], expected[row, where], rtol=0, atol=1e-12)


def test_only_masks_have_a_part_in_it():
    """Known tokens of a noisy stream, the clean stream and the rows of the autoregressive loss do not."""
    model = latent_model("causal", "in_place")
    tokens, masked = random_tokens(2, 9), torch.rand(2, 1, 9, generator=torch.Generator().manual_seed(2)) < 0.5
    z, target = some_noise(model, 9, 3), torch.ones(2, 9, dtype=torch.bool)
    other = torch.where(masked[..., None], z, z + 1)
    with torch.no_grad():
        hidden = [two_stream_hidden(model, tokens, masked, 3, None, target, latent=noise) for noise in (z, other)]
        plain = two_stream_hidden(model, tokens, masked, 3, None, target)
    assert torch.equal(*hidden)
    n = int(masked.sum())
    torch.testing.assert_close(hidden[0][n:], plain[n:], rtol=0, atol=1e-12)


def test_noise_is_one_of_a_block_or_of_a_position():
    for per, same in (("block", True), ("position", False)):
        z = some_noise(latent_model(latent_per=per), 10, 4, draws=3)
        assert z.shape == (2, 3, 10, 3)
        assert torch.equal(z[:, :, 0], z[:, :, 3]) == same and torch.equal(z[:, :, 8], z[:, :, 9]) == same
        assert len(z[:, :, ::4].unique()) == z[:, :, ::4].numel(), "rows, draws, blocks and numbers differ"
    steps = [
        latent_noise(NoiseKeys(0, step, torch.arange(2), 0, 2), latent_model().config, 10, 4, 3) for step in (1, 2)
    ]
    assert (steps[0] != steps[1]).all(), "a step of training has its own"


def test_noise_is_standard_normal():
    """Mean, variance and kurtosis of 60,000 numbers within 5 standard errors: false alarm below 1e-5."""
    z = some_noise(latent_model(latent=4, latent_per="position"), 50, 5, draws=30, rows=10).flatten()
    for moment, error in ((z.mean(), 1), (z.var() - 1, 2**0.5), ((z**4).mean() - 3, 96**0.5)):
        assert abs(moment) < 5 * error / 245


def test_one_draw_does_not_tell_the_positions_of_an_empty_first_block_apart():
    """Their rows are alike, as without any; a draw at each position does, and so does a block before."""
    tokens, masked = random_tokens(1, 8), torch.ones(1, 1, 8, dtype=torch.bool)
    spread = {}
    for per in ("block", "position"):
        model = latent_model(latent_per=per)
        with torch.no_grad():
            blocks = two_stream_hidden(model, tokens, masked, 4, latent=some_noise(model, 8, 4, rows=1)).view(2, 4, 16)
        spread[per] = (blocks - blocks[:, :1]).abs().amax((1, 2))
    assert spread["block"][0] < 1e-12 and spread["block"][1] > 0.01 and (spread["position"] > 0.01).all()
