"""Elementwise parts of a layer, with hand-written gradients.

On a CPU the multiplications of a small transformer are cheap and passes over memory are not; torch takes norms and
rotations apart into many of them. The formulae are the ordinary ones, and the tests compare them with torch's.

Shape legend: b batch, r rows, h heads, d head dim.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype that matrix multiplications of `x` run in."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019), in the dtype that the next multiplication wants."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and torch.is_grad_enabled():
            weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))  # bf16 of a shared model
            return _RMSNorm.apply(x, weight, self.eps, autocast_dtype(x))  # type: ignore[no-any-return]
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps).to(autocast_dtype(x))


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


def rotary_angles(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of position * theta^(-2i/d) (Su et al. 2021, eq. 15), for `rotate`: (1 or b, r, 1, d) each."""
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float64) / head_dim
    angles = positions.double()[..., None, None] * theta**-exponent
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (x_i, x_{i + d/2}) of x (b, r, h, d)."""
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
