"""Measure what a computation costs, and could cost: the machine's own rates, FLOPs, peak memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hybrid.bench.baselines import Causal, Dense
from hybrid.model.attention import SDPA, Backend, Eager
from hybrid.model.masks import Pattern
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


@dataclass
class AllowedPairs:
    """Stands in for attention while FLOPs are counted: 2 products of the pairs that the pattern allows, and 5 backward.

    The backward pass computes the scores once more, as torch's kernels do. What is returned depends on queries, keys
    and values without a product of its own, so that all gradients are asked for.
    """

    flops: int = 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
        allowed = pattern.dense()
        pairs = int(allowed.sum()) * (q.shape[0] // allowed.shape[0]) * q.shape[1]
        products = 7 if torch.is_grad_enabled() and q.requires_grad else 2
        self.flops += products * 2 * pairs * q.shape[3]
        return q + k.mean(2, keepdim=True) + v.mean(2, keepdim=True)


def countable(attend: Backend) -> Backend:
    """Return an attention whose FLOPs can be counted in place of `attend`.

    torch counts those of its own kernels. It does not know FlexAttention, which raises while it counts, and sees no
    products in kernels of others.
    """
    return attend if isinstance(attend, (Eager, SDPA, Dense, Causal)) else AllowedPairs()


def count_flops(run: Callable[[], Any], attend: Backend | None = None) -> int:
    """Count the FLOPs of the matrix products of one call, forward and backward, attention kernels among them.

    Args:
        attend: the attention of `run`, made by `countable`; None: it has torch's.
    """
    aten = torch.ops.aten
    mapping = {
        aten.addmm: _addmm_flops,
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        run()
    return counter.get_total_flops() + (attend.flops if isinstance(attend, AllowedPairs) else 0)


def _addmm_flops(total_shape, a_shape, b_shape, *_: Any, **__: Any) -> int:
    """Count a product that is added to a total. torch's own formula stumbles over a dtype for the result."""
    return 2 * a_shape[0] * a_shape[1] * b_shape[1]


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
