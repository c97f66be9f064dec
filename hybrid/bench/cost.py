"""Measure what a computation costs, and could cost: the machine's own rates, FLOPs, peak memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from hybrid.results.timing import interleave


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """Measure the FLOP/s of a large square product, the best of several."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    timing = interleave({"product": lambda: a @ b}, 8, device)["product"]
    return 2 * size**3 / min(timing.seconds)


def bandwidth(device: torch.device, n_bytes: int = 2**28) -> float:
    """Measure the bytes/s at which a tensor larger than the caches of most machines is read, the best of several."""
    x = torch.ones(n_bytes // 4, device=device)
    timing = interleave({"sum": x.sum}, 5, device)["sum"]
    return n_bytes / min(timing.seconds)


def count_flops(run: Callable[[], Any]) -> int:
    """Count the FLOPs of the matrix products of one call, forward and backward, attention kernels among them."""
    aten = torch.ops.aten
    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        run()
    return counter.get_total_flops()


def _attention_flops(q_shape, k_shape, v_shape, *_: Any, **__: Any) -> int:
    """Count all pairs: a kernel that skips what a causal mask rules out is counted as if it did not."""
    b, h, q, d = q_shape
    return 2 * b * h * q * k_shape[2] * (d + v_shape[3])


def _attention_backward_flops(grad_shape, q_shape, k_shape, v_shape, *_: Any, **__: Any) -> int:
    """Count the scores once more, and four products of the same size."""
    return 5 * _attention_flops(q_shape, k_shape, v_shape) // 2


def peak_growth(make: Callable[[], Callable[[], Any]], device: torch.device) -> int:
    """Measure by how many bytes a step lifts the peak memory over what is held before it.

    On a CPU it must be called in a fresh process.
    """
    run = make()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    """Read bytes of this process from Linux. (getrusage's peak would be that of the parent before it started.)"""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
