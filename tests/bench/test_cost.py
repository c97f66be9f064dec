"""FLOPs by hand, and the rates of a machine."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hybrid.bench import cost, generation
from hybrid.bench.cost import count_flops
from hybrid.model import Transformer
from hybrid.results.timing import Timing


def test_flops_of_a_product_and_of_attention():
    q, k = torch.randn(2, 3, 8, 16), torch.randn(2, 3, 20, 16)
    assert count_flops(lambda: torch.randn(5, 7) @ torch.randn(7, 11)) == 2 * 5 * 7 * 11
    attention = torch.nn.functional.scaled_dot_product_attention
    assert count_flops(lambda: attention(q, k, k)) == 2 * 2 * 2 * 3 * 8 * 20 * 16


def test_flops_of_a_sum_in_another_dtype() -> None:
    """As the head does on a GPU: torch's own formula takes the dtype for a shape."""
    with FakeTensorMode():
        total = torch.empty(5, 11, device="cuda")
        a, b = (torch.empty(size, device="cuda", dtype=torch.bfloat16) for size in ((5, 7), (7, 11)))
        assert count_flops(lambda: torch.addmm(total, a, b, out_dtype=torch.float32)) == 2 * 5 * 7 * 11


def test_rates_of_a_machine_are_those_of_the_best_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(variants, repeats, device):
        return {name: Timing([4.0, 2.0, 3.0]) for name in variants}

    monkeypatch.setattr(cost, "interleave", timed)
    device = torch.device("cpu")
    assert cost.matmul_rate(device, torch.float32, size=8) == 2 * 8**3 / 2
    assert cost.bandwidth(device, n_bytes=4096) == 2048


def test_flops_of_attention_backwards_are_five_products() -> None:
    q, k = torch.randn(2, 3, 8, 16, requires_grad=True), torch.randn(2, 3, 20, 16, requires_grad=True)
    attention = torch.nn.functional.scaled_dot_product_attention
    product = 2 * 2 * 3 * 8 * 20 * 16
    assert count_flops(lambda: attention(q, k, k).sum().backward()) == (2 + 5) * product


def test_the_clock_of_the_network_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward is asked for at once and takes 5 s; what was asked before it takes 2 s, and is not the network's."""
    now, pending = [0.0], [2.0]

    def wait(device: torch.device) -> None:
        assert device.type == "cuda"
        now[0] += pending.pop() if pending else 0.0

    monkeypatch.setattr(Transformer, "forward", lambda self: pending.append(5.0))
    monkeypatch.setattr(generation, "wait", wait)
    monkeypatch.setattr(generation.time, "perf_counter", lambda: now[0])
    with generation.Clock(torch.device("cuda")) as clock:
        Transformer.forward(None)  # type: ignore[arg-type]
    assert clock.seconds == 5.0
