"""Schedules are what they say; counts are stratified over a batch and not tied to a position."""

from __future__ import annotations

import math

import pytest
import torch
from estimates import keys

from hybrid.noise import SCHEDULES, Keys, block_uniforms
from hybrid.options import build


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedules_are_consistent(name):
    schedule = build(SCHEDULES, name, "schedule")
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(schedule.masked(t).sum(), t)
    torch.testing.assert_close(schedule.rate(t.detach()), slope)
    ends = schedule.masked(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0], dtype=torch.float64))


def test_strata_cover_the_range_once_per_batch():
    u = block_uniforms(keys(6), 5, 2, True)
    assert sorted((u.flatten() * 60).long().tolist()) == list(range(60))


@pytest.mark.parametrize("rows", [1, 2])
def test_strata_are_not_tied_to_a_position(rows):
    """Over steps, the uniforms of each block of a batch of one or two rows fill [0, 1]: Kolmogorov-Smirnov, false alarm
    1e-6 per block (8 blocks, 2,000 steps)."""
    steps = 2000
    batches = [block_uniforms(Keys(0, s, torch.arange(rows), 0, rows), 8 // rows, 1, True) for s in range(steps)]
    draws = torch.stack([batch.flatten() for batch in batches])
    ordered = draws.sort(0).values
    grid = torch.arange(1, steps + 1, dtype=torch.float64)[:, None] / steps
    distance = torch.maximum((grid - ordered).abs(), (ordered - grid + 1 / steps).abs()).amax(0)
    assert (distance < math.sqrt(-math.log(1e-6 / 2) / (2 * steps))).all()
    assert (draws.sum(1) / 8).std() < 0.02, "within a batch they are spread evenly"
