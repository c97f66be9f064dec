"""Muon over many matrices of one shape at once."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from hybrid.distributed import full, sharded_like

NUMBERS = {"cpu": 2**19, "cuda": 2**27}
"""Most numbers of the matrices that are orthogonalised together. A CPU gains by it where matrices are small; a GPU is
given few large products for many small ones."""


class Muon(torch.optim.Muon):
    """torch's Muon (Jordan 2024), with one Newton-Schulz iteration for all matrices of a shape.

    The weights are the same to rounding. States are those of torch's Muon.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update the weights that have a gradient."""
        for group in self.param_groups:
            momentum, rate = group["momentum"], group["lr"]
            for weights in _of_one_shape([p for p in group["params"] if p.grad is not None]):
                gradients = [g for p in weights if (g := p.grad) is not None]
                buffers = [self.momentum_of(p) for p in weights]
                torch._foreach_lerp_(buffers, gradients, 1 - momentum)
                updates = [full(u) for u in torch._foreach_lerp(gradients, buffers, momentum)]  # Nesterov's
                updates = orthogonalised(updates, group["ns_coefficients"], group["ns_steps"], group["eps"])
                updates = [sharded_like(u, p) for u, p in zip(updates, weights, strict=True)]
                rows, columns = weights[0].shape
                torch._foreach_mul_(weights, 1 - rate * group["weight_decay"])
                torch._foreach_add_(weights, updates, alpha=-rate * math.sqrt(max(1, rows / columns)))

    def momentum_of(self, p: Tensor) -> Tensor:
        """Return the momentum of a matrix, zero before its first step."""
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        return state["momentum_buffer"]


def _of_one_shape(weights: list[Tensor]) -> Iterator[list[Tensor]]:
    """Cut into lists of matrices of one shape."""
    by_shape: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for p in weights:
        by_shape[tuple(p.shape)].append(p)
    for shape, alike in by_shape.items():
        size = max(NUMBERS.get(alike[0].device.type, NUMBERS["cpu"]) // math.prod(shape), 1)
        for first in range(0, len(alike), size):
            yield alike[first : first + size]


def orthogonalised(
    updates: list[Tensor], coefficients: tuple[float, float, float], steps: int, eps: float
) -> list[Tensor]:
    """U V^T of each matrix U S V^T (r, c), about: some steps of x <- a x + (b x x^T + c (x x^T)^2) x in bfloat16."""
    a, b, c = coefficients
    x = torch.stack([update.bfloat16() for update in updates])  # (n, r, c)
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)  # no singular value is above 1
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return list((x.mT if is_tall else x).to(updates[0].dtype).contiguous().unbind())
