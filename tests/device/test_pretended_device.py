"""The pretended GPU itself: it faults where a GPU would, and notes where the host would wait."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Command
from pretended_device import pretended_gpu
from torch import Tensor
from toy import random_tokens, toy_model

from hybrid.device import resolve_device, resolve_precision, send
from hybrid.model.two_stream import two_stream_hidden

A, INDEX, MASK = torch.arange(3.0), torch.tensor([0, 2]), torch.tensor([True, False, True])


@pytest.mark.parametrize(
    "mix",
    [
        lambda a: a + A,
        lambda a: A + a.sum(),  # a number of the device is no number of the host
        lambda a: torch.cat([a, A[:0]]),
        lambda a: a.gather(0, INDEX),
        lambda a: torch.nn.functional.embedding(INDEX, a[:, None]),
        lambda a: a.masked_fill(MASK, 0.0),
        lambda a: torch.where(MASK, a, a),
        lambda a: a @ A,
        lambda a: a.add_(A),
    ],
)
def test_devices_that_mix_are_refused(mix: Callable[[Tensor], Tensor]) -> None:
    with pretended_gpu(), pytest.raises(RuntimeError, match=r"same device, found cuda:0 and cpu"):
        mix(A.to("cuda"))


def copied_back(a: Tensor) -> None:
    torch.empty(3).copy_(a)


def set_where(a: Tensor, value: Tensor | float) -> None:
    a[a > 0] = value


WAITS = {
    "a number is read": [float, lambda a: bool(a.any()), lambda a: a[0].item(), lambda a: a[: a[1].long()]],
    "copy to the host": [lambda a: a.tolist(), lambda a: a.cpu(), copied_back, lambda a: a.to("cpu", torch.float64)],
    "copy to the device": [
        lambda a: A.to(a.device),
        lambda a: A.to(a.device, non_blocking=True),  # not from pinned memory
        lambda a: torch.tensor([1.0], device=a.device),
        lambda a: a.new_tensor([1.0]),
        lambda a: a[INDEX],
        lambda a: a.copy_(A),
    ],
    "nonzero": [Tensor.nonzero, lambda a: torch.where(a > 0), lambda a: a.masked_select(a > 0)],
    "boolean index": [lambda a: a[a > 0], lambda a: set_where(a, a[1:] * 2)],
    "unique": [Tensor.unique],
    "repeat_interleave": [lambda a: a.repeat_interleave(a.long())],
    "": [
        lambda a: send(A, a.device),
        lambda a: a[1:, None] * 2 + torch.ones(()),
        lambda a: a.to("cuda", torch.float64),
        lambda a: a.masked_fill(a > 0, 1.0),
        lambda a: a.masked_scatter(a > 0, a),
        lambda a: set_where(a, 1.0),
        lambda a: a[a.long()],
        lambda a: a.repeat_interleave(2),
        lambda a: (a.sort(), a.cumsum(0), torch.searchsorted(a, a), torch.zeros(3, device=a.device)),
    ],
}


@pytest.mark.parametrize("what", WAITS, ids=lambda what: what.replace(" ", "_") or "none")
def test_where_the_host_would_wait(what: str) -> None:
    for number, act in enumerate(WAITS[what]):
        with pretended_gpu() as gpu:
            a = A[:1].to("cuda") if act is float else A.to("cuda")
            gpu.waits.clear()
            act(a)
        assert {wait.what for wait in gpu.waits} == ({what} if what else set()), number


def test_a_wait_has_the_place_in_hybrid_that_caused_it() -> None:
    model, tokens = toy_model(), random_tokens(2, 6)
    with pretended_gpu() as gpu:
        ours = model.to("cuda")
        masked = torch.ones(2, 1, 6, dtype=torch.bool, device="cuda")
        gpu.waits.clear()
        two_stream_hidden(ours, tokens.to("cuda"), masked, 3)
    (wait,) = (w for w in gpu.waits if w.what == "nonzero")
    assert wait[1:3] == ("model/masks.py", "TwoStreamRows.read_masked") and wait.line > 100
    assert ("model/masks.py", "TwoStreamRows.read_masked") in gpu.places()


def test_it_computes_what_the_cpu_does() -> None:
    """Values, gradients, views that are written through, and copies that do not share memory."""
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    layer = torch.nn.Linear(3, 2)
    layer(x).square().sum().backward()
    with pretended_gpu():
        moved, there = torch.nn.Linear(3, 2).to("cuda"), x.to("cuda")
        moved.load_state_dict(layer.state_dict())
        assert moved.weight.device == torch.device("cuda:0") and moved.weight.is_cuda and moved.weight.is_leaf
        moved(there).square().sum().backward()
        assert moved.weight.grad is not None and layer.weight.grad is not None
        assert torch.equal(moved.weight.grad.cpu(), layer.weight.grad)
        there[1:, 0].fill_(7)
        assert there.cpu()[:, 0].tolist() == [x[0, 0].item(), 7, 7, 7] and not (x == 7).any()
        with pytest.raises(TypeError, match=r"Tensor\.cpu\(\) first"):
            there.numpy()


@pytest.mark.parametrize("script", ["generate.py", "evaluate"])
def test_commands_use_tensor_cores_on_a_gpu_and_stay_in_float32_on_a_cpu(
    script: str, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def load(path: str, device: str, precision: str, dtype: str | None) -> None:
        asked.append((device, precision))
        raise ValueError("that is all")

    monkeypatch.setattr("hybrid.lm.load", load)
    words = (script, "--checkpoint", tmp_path)
    assert command(*words).error == "error: that is all"
    with pretended_gpu():
        assert command(*words).error == "error: that is all"
    command(*words, "--precision", "bf16")
    assert asked == [("cpu", "fp32"), ("cuda", "auto"), ("cpu", "bf16")]


def test_hybrid_takes_it_for_a_gpu() -> None:
    with pretended_gpu():
        device = resolve_device("auto")
        assert device.type == "cuda" and resolve_precision("auto", device) == "bf16"
    assert torch.tensor([1.0]).device.type == "cpu"
