"""A schedule is alpha, the probability that a token is kept, and its derivative."""

from __future__ import annotations

import pytest
import torch

from hybrid.objectives.schedules import SCHEDULES
from hybrid.options import build


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedules_are_consistent(name):
    schedule = build(SCHEDULES, name, "schedule")
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    alpha = schedule.alpha(t)
    (slope,) = torch.autograd.grad(alpha.sum(), t)
    torch.testing.assert_close(schedule.derivative(t.detach()), slope)
    torch.testing.assert_close(schedule.one_minus_alpha(t), 1 - alpha)
    ends = schedule.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([1.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_near_time_0_the_masked_fraction_keeps_its_digits(name):
    """The time form divides by 1 - alpha: at t = 1e-9 it is t |alpha'(0)| or t^2, where 1 - (1 - 1e-18) would be 0."""
    schedule = SCHEDULES[name]()
    t = torch.tensor([1e-9], dtype=torch.float64)
    power = 2 if name in ("polynomial", "cosine_mdlm") else 1
    torch.testing.assert_close(schedule.one_minus_alpha(t) * power, -schedule.derivative(t) * t, rtol=1e-8, atol=0)
