"""RMSNorm and the rotation of positions.

On a CPU the multiplications of a small transformer are cheap and passes over memory are not; torch takes norms and
rotations apart into many of them.

Shape legend: b batch, r rows, h heads, d head dim.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019)."""
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """`plain_rms_norm`, with its mean in float32 at least and its result in `dtype`."""
    if x.device.type == "cpu" and torch.is_grad_enabled():
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))  # bf16 of a shared model
        return _RMSNorm.apply(x, weight, eps, dtype)  # type: ignore[no-any-return]
    return F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), eps).to(dtype)


def normalised(x: Tensor, kind: str, eps: float) -> Tensor:
    """x / sqrt(sum(x^2) + eps d), the RMS norm without its factor sqrt(d), of kind `rms`; (x - mean) / std of `layer`.

    Without a gradient.
    """
    if kind == "layer":
        return F.layer_norm(x, x.shape[-1:], eps=eps)
    if x.device.type == "cuda":  # one kernel where the other way has five
        return F.rms_norm(x, x.shape[-1:], _unit(x.shape[-1], x.dtype, x.device), eps)
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    return x / norm.square_().add_(eps * x.shape[-1]).sqrt_().to(x.dtype)


@cache
def _unit(dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the weights (dim,) that take the factor sqrt(dim) out of an RMS norm."""
    return torch.full((dim,), dim**-0.5, dtype=dtype, device=device)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:  # type: ignore[override]
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        rstd = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, rstd, weight)
        return (x * rstd.to(x.dtype)).mul_(weight.to(x.dtype)).to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        """LayerNorm's kernel with mean 0 subtracts the mean of the gradient too; that is added back."""
        x, rstd, weight = ctx.saved_tensors
        grad = grad.to(x.dtype)
        dim = x.shape[-1]
        zero = torch.zeros_like(rstd)
        dx, dweight, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, [dim], zero, rstd, weight, None, [True, True, False]
        )
        mean = (grad @ weight.to(grad.dtype)).div_(dim).unsqueeze(-1)
        return dx.addcmul_(rstd.to(dx.dtype), mean), dweight, None, None


def plain_rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (x_i, x_{i + d/2}) of x (b, r, h, d) by the angles whose (cos, cos) and (-sin, sin) are given:
    x_i cos - x_{i + d/2} sin, and x_{i + d/2} cos + x_i sin (Su et al. 2021)."""
    first, second = x.chunk(2, dim=-1)
    return x * angles[0] + torch.cat([second, first], dim=-1) * angles[1]


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """`plain_rotate`."""
    if not torch.is_grad_enabled():  # a few rows at a time: the bookkeeping of a Function would cost as much
        return _turn(x, angles[0], angles[1], 1)
    return _Rotate.apply(x, *angles)  # type: ignore[no-any-return]


class _Rotate(torch.autograd.Function):
    """A rotation's gradient is the rotation back, so nothing of x is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, sin, -1), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat([second, first], dim=-1), sin, value=direction)
