"""Counts are stratified over a batch and not tied to a position."""

from __future__ import annotations

import math

import pytest
import torch
from estimates import noise_of

from hybrid import rng
from hybrid.objectives import noise
from hybrid.objectives.noise import NoiseKeys, block_uniforms, position_uniforms, ranks, target_ranks


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


def test_ranks_are_the_places_in_the_order():
    values = torch.rand(3, 4, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = values.masked_fill(values > 0.7, 2.0)  # ties, as of tokens that are no targets
    assert torch.equal(ranks(values), values.argsort(-1).argsort(-1))


def test_noise_is_that_of_two_sorts():
    """The strata of a global batch and the order within a block, spelled out: under a seed they never change."""
    keys = NoiseKeys(5, 7, torch.arange(2, 4), 2, 6)
    stratum = rng.uniform(5, rng.STRATUM, torch.arange(6 * 3 * 4), 7).argsort().argsort().view(6, 3, 4)[2:4]
    row, draw = torch.arange(2, 4)[:, None, None], torch.arange(3)[:, None]
    jitter = rng.uniform(5, rng.COUNT, row, draw, torch.arange(4), 7)
    assert torch.equal(block_uniforms(keys, 4, 3, True), (stratum + jitter) / 72)
    is_target = torch.arange(14) % 3 > 0
    score = rng.uniform(5, rng.ORDER, row, draw, torch.arange(14), 7).masked_fill(~is_target, 2.0)
    score = torch.cat([score, score.new_full((2, 3, 2), 3.0)], -1).view(2, 3, 4, 4)
    assert torch.equal(target_ranks(keys, is_target.expand(2, -1), 4, 3), score.argsort(-1).argsort(-1))


def test_a_global_batch_is_sorted_once_for_all_its_micro_batches(monkeypatch):
    sorts = []
    monkeypatch.setattr(noise, "ranks", lambda values: sorts.append(values.shape) or ranks(values))
    noise.batch_strata.cache_clear()
    for step in (1, 2):
        whole = block_uniforms(noise_of(8, step), 5, 1, True)
        parts = [block_uniforms(NoiseKeys(0, step, torch.arange(r, r + 2), r, 8), 5, 1, True) for r in range(0, 8, 2)]
        assert torch.equal(torch.cat(parts), whole)
    assert sorts == [(40,), (40,)], "one sort a step"
