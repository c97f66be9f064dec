"""Decide where to compute and in which precision; nothing else does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hybrid.distributed import ALONE, Ranks
from hybrid.options import pick, shown

log = logging.getLogger(__name__)
PRECISIONS = ("auto", "fp32", "tf32", "bf16")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What weights may be kept in, where a model is not trained."""
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions of 16 bits: the dtype of products. `fp16` is that of weights that are kept so, and of nothing else."""


def parse_device(name: Any, key: str = "run.device") -> torch.device:
    """Return the device that a name means, whether or not this machine has it.

    Raises:
        ValueError: not the name of a device that models run on here.
    """
    wrong = f"{key}: {shown(name)} is not a device to run on; use auto, cpu, cuda or cuda:N"
    try:
        device = torch.device(name) if isinstance(name, str) else None
    except (RuntimeError, ValueError, OverflowError):
        raise ValueError(wrong) from None
    if device is None or device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise ValueError(wrong)
    return torch.device("cpu") if device.type == "cpu" else device


def resolve_device(name: str, ranks: Ranks = ALONE, key: str = "run.device") -> torch.device:
    """`auto` takes a GPU where there is one; of several ranks each takes its own.

    Raises:
        ValueError: not a device, or one that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and ranks.world > 1:
        name = f"cuda:{ranks.local_rank}"
    device = parse_device(name, key)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        way_out = "use auto" if ranks.world == 1 else "start a rank per GPU (torchrun --nproc-per-node)"
        raise ValueError(f"{key}: {name!r} is not on this machine ({torch.cuda.device_count()} GPUs); {way_out}")
    return device


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to `device`. To a GPU it goes through pinned memory, for which the host does not have to wait."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def resolve_precision(name: str, device: torch.device) -> str:
    """`auto` is bf16 where the processor multiplies it in hardware, else fp32.

    Raises:
        ValueError: an unknown name, or `tf32` on a device that has none.
    """
    pick("trainer.precision", name, PRECISIONS)
    if name == "tf32" and device.type != "cuda":
        raise ValueError(f"trainer.precision: 'tf32' is a format of GPUs, and the device is {device.type}; use fp32")
    if name != "auto":
        return name
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    precision = "bf16" if has_bf16 else "fp32"
    log.info("precision: %s (%s %s bf16 in hardware)", precision, device.type, "has" if has_bf16 else "has no")
    return precision


def default_precision(device: torch.device, dtype: str | None = None) -> str:
    """Return what the commands that use a trained model compute in if nobody says: in what weights of 16 bits are kept
    in; else `auto` on a GPU, where products in float32 leave its tensor cores idle, and fp32 elsewhere."""
    own = _precision_of(None if dtype is None else DTYPES[dtype])
    return own or ("auto" if device.type == "cuda" else "fp32")


def resolve_dtype(dtype: Any, precision: str | None) -> tuple[torch.dtype, str]:
    """Return the dtype that weights are kept in, and the precision in which they are multiplied.

    Args:
        dtype: a name or a dtype of torch; None: float32.
        precision: None: fp32, or that of weights of 16 bits, which are multiplied as they are.

    Raises:
        ValueError: an unknown name, or a precision that weights of this dtype do not have.
    """
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    kept = DTYPES["float32" if name is None else pick("dtype", name, DTYPES)]
    own = _precision_of(kept)
    if own is None:
        return kept, "fp32" if precision is None else pick("precision", precision, PRECISIONS)
    if precision is not None:
        pick("precision", precision, (*PRECISIONS, "fp16"))
    if precision not in (None, "auto", own):
        raise ValueError(
            f"precision: {precision!r} does not go with dtype={name}: weights of 16 bits are multiplied as they are, "
            f"which is {own}; leave precision out, or dtype"
        )
    return kept, own


def _precision_of(dtype: torch.dtype | None) -> str | None:
    """Return the precision of weights of 16 bits."""
    return next((name for name, half in HALVES.items() if half == dtype), None)


def precision_context(name: str, device: torch.device) -> Callable[[], AbstractContextManager]:
    """Makes the context in which the network runs: an autocast for 16 bits, nothing else (`auto` is resolved).

    Products of float32 tensors are in float32, but for `tf32`, from here on: a backward pass runs outside the context.
    """
    precision = name if name in HALVES else resolve_precision(name, device)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    if precision not in HALVES:
        return nullcontext
    return partial(torch.autocast, device.type, dtype=HALVES[precision])


def autocast_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that matrix multiplications of `x` run in."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def keep_freed_memory() -> None:
    """Tell glibc's allocator to reuse freed memory rather than return it: every step asks for the same large tensors
    again, and fetching them from the kernel anew costs a tenth of a training step on a CPU. Does nothing elsewhere."""
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, mmap_threshold = -1, -3  # from malloc.h
    mallopt(mmap_threshold, 32 << 20)  # the largest that glibc takes
    mallopt(trim_threshold, 2**31 - 1)
