"""Weights as generation multiplies with them: the same function, in the layout in which few rows are fast.

A forward of a few rows costs what its weights cost to read and its operations to start. So norms' weights go into the
matrices behind them, queries, keys and values become one matrix, gate and up another, each (in, out) and in the dtype
of multiplications. A `FusedLayer` computes what its `Layer` does, from such weights; tests compare it with the
training pass to 1e-12 in float64.

    fuse(model, dtype)               in place, a layer at a time: a model that only generates, whose weights are on disk
    for_inference(model, dtype)      that, or of a model that is trained a copy, kept beside it until its weights change

Fused weights are no parameters: no optimizer and no file ever sees them. They are for passes without gradients.

Shape legend: b batch, r rows, h query heads, g key-value heads, d head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Lock
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid.distributed import full
from hybrid.model.kernels.elementwise import normalised, rotate
from hybrid.model.layers import Angles, Layer, LayerNorm, RMSNorm
from hybrid.model.masks import Pattern
from hybrid.model.transformer import Transformer

Norm = RMSNorm | LayerNorm


def _scale(norm: Norm) -> Tensor:
    """Return the factors behind `normalised`."""
    weight = full(norm.weight.detach())
    return weight if isinstance(norm, LayerNorm) else weight * weight.shape[0] ** 0.5


def _shift(norm: Norm) -> Tensor | None:
    return full(norm.bias.detach()) if isinstance(norm, LayerNorm) else None


class Affine:
    """y -> y @ matrix + bias: linear maps side by side, behind the weights of a norm."""

    matrix: Tensor  # (in, out)
    bias: Tensor | None

    def __init__(self, dtype: torch.dtype, *maps: nn.Linear, norm: Norm | None = None):
        n_in, n_out = maps[0].in_features, sum(one.out_features for one in maps)
        matrix = torch.empty(n_in, n_out, dtype=dtype, device=maps[0].weight.device)
        scale, shift = (None, None) if norm is None else (_scale(norm)[:, None], _shift(norm))
        bias = torch.zeros(n_out, dtype=maps[0].weight.dtype, device=matrix.device)
        places = zip(maps, *(t.split([one.out_features for one in maps], dim=-1) for t in (matrix, bias)), strict=True)
        with torch.no_grad():
            for one, columns, constants in places:
                weight = full(one.weight)  # (out, in)
                if scale is None:
                    columns.copy_(weight.t())
                else:
                    torch.mul(weight.t(), scale, out=columns)  # straight into its place: copies on the way are memory
                if one.bias is not None:
                    constants += full(one.bias)
                if shift is not None:
                    constants += weight @ shift
        self.matrix = matrix
        self.bias = bias.to(dtype) if maps[0].bias is not None or shift is not None else None

    def __call__(self, y: Tensor) -> Tensor:
        y = y @ self.matrix
        return y if self.bias is None else y + self.bias

    def add_to(self, x: Tensor, y: Tensor) -> Tensor:
        """x + self(y), in one operation where the dtypes allow it."""
        matrix = self.matrix
        if x.dtype != matrix.dtype:
            return x + self(y)
        x = x if self.bias is None else x + self.bias
        return torch.addmm(x.flatten(0, -2), y.flatten(0, -2), matrix).view(x.shape)


class FusedLayer(Layer):
    """The function of a `Layer`. Its tensors are plain attributes, which are quicker to find than buffers."""

    def __init__(self, layer: Layer, dtype: torch.dtype):
        nn.Module.__init__(self)
        self.config = layer.config
        self.qkv = Affine(dtype, layer.wq, layer.wk, layer.wv, norm=layer.attention_norm)
        self.heads: Tensor | None = None  # (h + g, d): weights of the norms of queries and keys, if there are any
        if isinstance(layer.q_norm, RMSNorm) and isinstance(layer.k_norm, RMSNorm):
            q, k = (_scale(norm).to(dtype) for norm in (layer.q_norm, layer.k_norm))
            self.heads = torch.cat([q.expand(self.config.n_heads, -1), k.expand(self.config.kv_heads, -1)])
        self.out = Affine(dtype, layer.wo)
        into_mlp = (layer.w_gate, layer.w_up) if self.config.mlp == "swiglu" else (layer.w_up,)
        self.up = Affine(dtype, *into_mlp, norm=layer.mlp_norm)
        self.down = Affine(dtype, layer.w_down)

    @property
    def affines(self) -> tuple[Affine, ...]:
        return self.qkv, self.out, self.up, self.down

    def tensors(self) -> list[Tensor]:
        found = [self.heads, *(t for affine in self.affines for t in (affine.matrix, affine.bias))]
        return [tensor for tensor in found if tensor is not None]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FusedLayer:
        """Move or convert the module, as torch asks for."""
        self.heads = None if self.heads is None else fn(self.heads)
        for affine in self.affines:
            affine.matrix, affine.bias = fn(affine.matrix), None if affine.bias is None else fn(affine.bias)
        return self

    def train(self, mode: bool = True) -> FusedLayer:
        """Begin or end training, as torch asks for.

        Raises:
            ValueError: it begins.
        """
        if mode:
            raise ValueError(
                "train: this model has generated, which has fused its weights; load it again and call train() before"
            )
        return cast(FusedLayer, super().train(mode))

    @property
    def dtype(self) -> torch.dtype:
        return self.qkv.matrix.dtype

    def project(self, x: Tensor, angles: Angles, pattern: Pattern) -> tuple[Tensor, Tensor, Tensor]:
        c = self.config
        y = normalised(x, c.norm, c.norm_eps).to(self.qkv.matrix.dtype)
        rows = self.qkv(y).unflatten(-1, (-1, c.head_width))  # (b, r, h + 2g, d)
        qk, v = rows[:, :, : -c.kv_heads], rows[:, :, -c.kv_heads :]
        if self.heads is not None:
            qk = normalised(qk, "rms", c.norm_eps) * self.heads
        qk = rotate(qk, angles)
        return pattern.select_queries(qk[:, :, : c.n_heads]), qk[:, :, c.n_heads :], v

    def rest(self, x: Tensor, out: Tensor) -> Tensor:
        c = self.config
        x = self.out.add_to(x, out)
        rows = self.up(normalised(x, c.norm, c.norm_eps).to(self.up.matrix.dtype))
        if c.mlp == "swiglu":
            gate, up = rows.chunk(2, dim=-1)
            return self.down.add_to(x, F.silu(gate).mul_(up))
        return self.down.add_to(x, F.gelu(rows, approximate="tanh"))


class FusedNorm(nn.Module):
    """The norm before the head."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, norm: Norm, kind: str, dtype: torch.dtype):
        super().__init__()
        self.kind, self.eps = kind, norm.eps
        shift = _shift(norm)
        self.register_buffer("weight", _scale(norm).to(dtype))
        self.register_buffer("bias", None if shift is None else shift.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        y = normalised(x, self.kind, self.eps).to(self.weight.dtype) * self.weight
        return y if self.bias is None else y + self.bias


def is_fused(model: Transformer) -> bool:
    return isinstance(model.layers[0], FusedLayer)


def fuse(model: Transformer, dtype: torch.dtype | None = None) -> None:
    """Fuse the weights of a model that only generates from now on, in place: each layer's own are freed before the next
    is fused, so that there are never two copies of all.

    Args:
        dtype: of multiplications; the residual stream keeps that of the model. None: that one.
    """
    if is_fused(model):
        return
    dtype = dtype or model.dtype
    for i, layer in enumerate(model.layers):
        model.layers[i] = FusedLayer(cast(Layer, layer), dtype)
    model.final_norm = FusedNorm(model.final_norm, model.config.norm, dtype)
    head = _head(model, dtype)
    if head is not None:
        del model.head_weight
        model.register_buffer("head_weight", head)


def _head(model: Transformer, dtype: torch.dtype) -> Tensor | None:
    """Copy the head's matrix (vocab, dim), in memory as (dim, vocab); None where the embedding serves as it is."""
    weight = full(model.head_matrix().detach())
    if model.config.tied_embeddings and weight.dtype == dtype:
        return None
    return weight.t().to(dtype).contiguous().t()


def for_inference(model: Transformer, dtype: torch.dtype) -> Transformer:
    """Fuse for generation: an expendable model itself, which stays fused, or a copy of another.

    The copy is kept as long as the model lives, and made current, in place, when the weights have changed. Of a model
    that is sharded over ranks none is kept, since a copy is full. Several threads may ask at once.

    Raises:
        ValueError: its weights were fused for another dtype; those of that one are gone.
    """
    # In inference mode tensors would be made that cannot be made current outside of it.
    with _LOCK, torch.inference_mode(False), torch.no_grad():
        if model.is_expendable and not model.training:
            fuse(model, dtype)
        if not is_fused(model):
            return _current_copy(model, dtype)
    if model.dtype != dtype:
        now, wanted = (str(one).removeprefix("torch.") for one in (model.dtype, dtype))
        raise ValueError(
            f"precision: the model multiplies in {now} since its first use, not in {wanted}; load it again"
        )
    return model


def _current_copy(model: Transformer, dtype: torch.dtype) -> Transformer:
    if any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        return _copy(model, dtype)
    state, kept = _state(model), _COPIES.get(model)
    if kept is None or kept.copy.dtype != dtype or kept.copy.device != model.device:
        kept = _COPIES[model] = _Kept(state, _copy(model, dtype))
    elif kept.state != state:
        _refresh(kept.copy, model, dtype)
        _COPIES[model] = _Kept(state, kept.copy)
    kept.copy.attend = model.attend
    return kept.copy


class _Kept(NamedTuple):
    state: list[Any]  # of the weights that the copy was made of
    copy: Transformer


_COPIES: WeakKeyDictionary[Transformer, _Kept] = WeakKeyDictionary()

_LOCK = Lock()
"""Of weights that are being fused."""


def _state(model: Transformer) -> list[Any]:
    """Return what differs when weights do.

    Versions are not enough, since writing to `.data` leaves them and so do torch's fused optimizers. Sums are not
    either: they miss a permutation. It reads the weights once, as a forward does.
    """
    parameters = list(model.parameters())
    wide = [torch.promote_types(parameter.dtype, torch.float32) for parameter in parameters]
    sums = torch.stack([p.detach().sum(dtype=dtype) for p, dtype in zip(parameters, wide, strict=True)]).tolist()
    return [
        (p.data_ptr(), None if p.is_inference() else p._version, p.dtype, total)
        for p, total in zip(parameters, sums, strict=True)
    ]


def _copy(model: Transformer, dtype: torch.dtype) -> Transformer:
    copy = Transformer.__new__(Transformer)
    nn.Module.__init__(copy)
    for name in (
        "config", "vocab_size", "end_of_text", "mask_token_id", "begin_token_id", "end_token_ids", "rope", "attend",
        "recompute", "is_expendable", "_n_parameters",
    ):  # fmt: skip
        setattr(copy, name, getattr(model, name))
    copy.share_inputs(model)
    copy.layers = nn.ModuleList(FusedLayer(cast(Layer, layer), dtype) for layer in model.layers)
    copy.final_norm = FusedNorm(model.final_norm, model.config.norm, dtype)
    copy.register_buffer("head_weight", _head(model, dtype))
    return copy


def _refresh(copy: Transformer, model: Transformer, dtype: torch.dtype) -> None:
    """Write the present weights of `model` into `copy`, a layer at a time, where they are."""
    copy.share_inputs(model)
    for own, layer in zip(copy.layers, model.layers, strict=True):
        _overwrite(cast(FusedLayer, own).tensors(), FusedLayer(cast(Layer, layer), dtype).tensors())
    _overwrite(copy.final_norm.buffers(), FusedNorm(model.final_norm, model.config.norm, dtype).buffers())
    head = _head(model, dtype)
    if head is not None:
        cast(Tensor, copy.head_weight).copy_(head)


def _overwrite(tensors: Iterable[Tensor], by: Iterable[Tensor]) -> None:
    for own, new in zip(tensors, by, strict=True):
        own.copy_(new)
