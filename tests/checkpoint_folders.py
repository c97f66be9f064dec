"""Small checkpoints for the tests, and how to see that one is whole."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from hybrid.checkpoints.finding import read_state, step_of
from hybrid.checkpoints.saving import save_checkpoint


def save(folder: Path, step: int, size: int = 64) -> Path:
    tensors = {"model": {"weight": torch.full((size,), float(step))}, "ema": {"weight": torch.full((3,), -float(step))}}
    return save_checkpoint(folder, step, tensors, {"step": step, "lr": 0.1})


def assert_whole(found: Path) -> int:
    """All parts of a checkpoint are of one step; return it."""
    step = read_state(found)["step"]
    assert step == step_of(found)
    assert load_file(found / "model.safetensors")["weight"].eq(step).all()
    assert load_file(found / "ema.safetensors")["weight"].eq(-step).all()
    return step


def debris(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".") or path.name.endswith(".replaced")]
