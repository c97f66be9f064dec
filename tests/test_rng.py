"""Counter-based randomness: uniform, a function of its keys and of nothing else."""

from __future__ import annotations

import torch

from hybrid import rng


def test_uniforms_are_uniform_and_independent_of_company():
    a = rng.uniform(0, rng.TOKEN, torch.arange(1000)[:, None], torch.arange(100))
    alone = rng.uniform(0, rng.TOKEN, torch.tensor([[7]]), torch.tensor([3]))
    assert alone.item() == a[7, 3].item()
    ordered = a.flatten().sort().values
    grid = torch.arange(1, 100_001, dtype=torch.float64) / 100_000
    assert (ordered - grid).abs().max() < 0.01, "Kolmogorov-Smirnov, false alarm below 1e-8"
    neighbours = torch.corrcoef(torch.stack([a[:, :-1].flatten(), a[:, 1:].flatten()]))[0, 1]
    assert abs(neighbours) < 0.02
    assert rng.uniform(0, rng.ORDER, torch.tensor([7]), torch.tensor([3])) != alone
    assert rng.uniform(1, rng.TOKEN, torch.tensor([7]), torch.tensor([3])) != alone


def test_row_keys_depend_on_content_and_tell_copies_apart():
    a = rng.row_keys([[1, 2], [3], [1, 2]])
    assert len(set(a)) == 3
    assert rng.row_keys([[3]]) == [a[1]]
    assert rng.row_keys([[1, 2], [1, 2]]) == [a[0], a[2]]
