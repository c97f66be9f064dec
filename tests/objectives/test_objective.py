"""What every objective promises: a gradient, sums over rows that parts of a batch add up to, and names that stay."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from toy import random_tokens, toy_model

from hybrid.data.batches import Batch
from hybrid.objectives import OBJECTIVES, ObjectiveConfig, build_objective
from hybrid.objectives.noise import NoiseKeys


@pytest.mark.parametrize("block_size", [1, 4, 10])
@pytest.mark.parametrize("ar_weight", [0.0, 0.5])
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_parts_of_a_batch_add_up_to_it(name: str, ar_weight: float, block_size: int) -> None:
    """Whatever the accumulation or the ranks: total, what is logged, and the gradient."""
    has_teacher = "teacher" in {f.name for f in dataclasses.fields(OBJECTIVES[name])}
    config = ObjectiveConfig(name=name, ar_weight=ar_weight, draws=2, teacher="a run" if has_teacher else None)
    objective = build_objective(config, toy_model(seed=1) if has_teacher else None)
    model, tokens = toy_model("causal"), random_tokens(4, 10)
    batch = Batch(tokens, torch.rand(4, 10, generator=torch.Generator().manual_seed(0)) < 0.8)

    def run(first: int, last: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        part = Batch(batch.tokens[first:last], batch.is_target[first:last])
        noise = NoiseKeys(0, 3, torch.arange(first, last), first, 4)
        loss = objective.loss(model, part, noise, block_size)
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss.total, list(model.parameters()))])
        assert all(not value.requires_grad and value.shape == () for value in loss.logged.values())
        return {"total": loss.total.detach(), **loss.logged}, gradient

    (whole, expected), *parts = run(0, 4), run(0, 1), run(1, 4)
    assert expected.norm() > 0.1
    torch.testing.assert_close(parts[0][1] + parts[1][1], expected)
    for part, _ in parts:
        assert list(part) == list(whole)
    for key, value in whole.items():
        torch.testing.assert_close(parts[0][0][key] + parts[1][0][key], value)
