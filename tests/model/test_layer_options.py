"""Layers that are computed again, or compiled, are the same function; and what precision does."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor
from toy import random_tokens, toy_model

from hybrid.device import precision_context
from hybrid.model import Transformer
from hybrid.objectives.cross_entropy import masked_loss
from hybrid.objectives.estimators import Count
from hybrid.objectives.noise import NoiseKeys
from hybrid.runs.run import Run


def loss(model: Transformer) -> Tensor:
    tokens = random_tokens(3, 12)
    everything = torch.ones_like(tokens, dtype=torch.bool)
    masking = Count().draw(NoiseKeys(0, 0, torch.arange(3), 0, 3), everything, 4, 2, True)
    return masked_loss(model, tokens, masking, 4).total


def gradient(model: Transformer) -> Tensor:
    model.zero_grad()
    loss(model).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def kept_bytes(model: Transformer) -> int:
    """Of tensors that the forward pass keeps for the backward pass."""
    total = 0

    def pack(t: Tensor) -> Tensor:
        nonlocal total
        total += t.numel() * t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss(model)
    return total


@pytest.mark.parametrize("prediction", ["in_place", "next_token"])
def test_recomputing_keeps_less_and_gives_the_same_gradient(prediction: str) -> None:
    model = toy_model(prediction=prediction)
    expected, kept = gradient(model), kept_bytes(model)
    model.recompute = True
    torch.testing.assert_close(gradient(model), expected, rtol=1e-12, atol=1e-12)
    assert kept_bytes(model) < 0.3 * kept


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of torch's own tracing
def test_compiled_layers_give_the_same_gradient(configure, tmp_path) -> None:
    gradients = []
    for choice in ("off", "on"):
        run = Run.of(configure(tmp_path, f"trainer.compile={choice}"))
        stepper = run.stepper()
        stepper.accumulate(0)
        gradients.append(torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None]))
        assert ("keys_and_values" in vars(run.model.layers[0])) is (choice == "on")
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def test_compilation_is_for_gpus_unless_it_is_asked_for(configure, tmp_path) -> None:
    assert "keys_and_values" not in vars(Run.of(configure(tmp_path)).model.layers[0])


def test_tf32_is_a_format_of_gpus(configure, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"trainer.precision: 'tf32' .* the device is cpu; use fp32"):
        Run.of(configure(tmp_path, "trainer.precision=tf32"))
    precision_context("tf32", torch.device("cuda"))
    assert torch.get_float32_matmul_precision() == "high"
    precision_context("fp32", torch.device("cuda"))
    assert torch.get_float32_matmul_precision() == "highest"
