"""Counts are stratified over a batch and not tied to a position."""

from __future__ import annotations

import math

import pytest
import torch
from estimates import noise_of

from hybrid.objectives.noise import NoiseKeys, block_uniforms, position_uniforms


def test_strata_cover_the_range_once_per_batch():
    u = block_uniforms(noise_of(6), 5, 2, True)
    assert sorted((u.flatten() * 60).long().tolist()) == list(range(60))


@pytest.mark.parametrize("rows", [1, 2])
def test_strata_are_not_tied_to_a_position(rows):
    """Over steps, the uniforms of each block of a batch of one or two rows fill [0, 1]: Kolmogorov-Smirnov, false alarm
    1e-6 per block (8 blocks, 2,000 steps)."""
    steps = 2000
    batches = [block_uniforms(NoiseKeys(0, s, torch.arange(rows), 0, rows), 8 // rows, 1, True) for s in range(steps)]
    draws = torch.stack([batch.flatten() for batch in batches])
    ordered = draws.sort(0).values
    grid = torch.arange(1, steps + 1, dtype=torch.float64)[:, None] / steps
    distance = torch.maximum((grid - ordered).abs(), (ordered - grid + 1 / steps).abs()).amax(0)
    assert (distance < math.sqrt(-math.log(1e-6 / 2) / (2 * steps))).all()
    assert (draws.sum(1) / 8).std() < 0.02, "within a batch they are spread evenly"


@pytest.mark.parametrize("make", [block_uniforms, position_uniforms], ids=["blocks", "positions"])
def test_noise_has_a_number_of_its_own_for_every_key(make):
    """Row, draw, place, step and seed; a row has the same in other company, and more of it where it is longer."""

    def draw(seed=1, step=2, rows=(3, 4), places=6, draws=2):
        keys = NoiseKeys(seed, step, torch.tensor(rows), 0, len(rows))
        return make(keys, places, draws, False) if make is block_uniforms else make(keys, places, draws)

    base = draw()
    numbers = set(base.flatten().tolist())
    assert base.shape == (2, 2, 6) and len(numbers) == 24 and 0 <= min(numbers) <= max(numbers) < 1
    for other in (draw(seed=2), draw(step=3), draw(rows=(5, 6))):
        assert not numbers & set(other.flatten().tolist())
    assert torch.equal(draw(rows=(4, 3)), base.flip(0)) and torch.equal(draw(rows=(3,)), base[:1])
    assert torch.equal(draw(places=9, draws=3)[:, :2, :6], base)


def test_rows_on_their_own_spread_each_draw_over_their_blocks():
    """Every draw has its own order of the strata and its own places within them."""
    u = block_uniforms(NoiseKeys.of_rows(1, torch.tensor([3, 4])), 5, 40, True)
    strata, within = (u * 5).floor(), u * 5 % 1
    assert torch.equal(strata.sort(-1).values, torch.arange(5.0, dtype=torch.float64).expand(2, 40, 5))
    assert len({tuple(order) for order in strata.flatten(0, 1).tolist()}) > 40, "of 120 orders, in 80 draws"
    assert len(set(within.flatten().tolist())) == 400
