"""Turn the parameters and buffers of a module into named tensors, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from hybrid.distributed import sharded_like

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class DamagedState(ValueError):
    """A checkpoint holds what cannot have been saved so: another one may do."""


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by name; one of several names (tied weights) under its first only."""
    state = module.state_dict()
    return {names[0]: state[names[0]] for names in _names_of_each(module)}


def load_state(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into a module; names and shapes must be the same (of tied weights, one name is enough).

    Raises:
        ValueError: they are not, or a tensor is of another kind or not finite; one line with the first few, and nothing
            has been copied.
    """
    own = module.state_dict()
    names = _names_of_each(module)
    given = {next((name for name in same if name in tensors), same[0]): own[same[0]] for same in names}
    optional = {name for same in names for name in same} & set(tensors) - set(given)
    copy_into(tensors, {**given, **{name: own[name] for name in optional}}, "")


def copy_into(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str) -> None:
    """Copy `tensors` into those of `own`, if all can take their place: the same names and shapes, finite numbers.

    Each is read twice, to be checked and to be copied, so that no more than one of a file is in memory at a time. The
    largest are copied first: a file may hold them in more bytes than they are kept in, and counts as memory itself.

    Raises:
        ValueError: they cannot; one line that begins with `where` and names the first few, and nothing was copied.
    """
    reshaped, broken = [], []
    for name in own:
        if name not in tensors:
            continue
        tensor = tensors[name]
        if tensor.shape != own[name].shape:
            reshaped.append(f"{name} {list(tensor.shape)} instead of {list(own[name].shape)}")
        elif why := flaw_of(tensor, own[name].dtype):
            broken.append(f"{name} {why}")
        del tensor  # before the next is read
    problems = [
        f"{label} {first_few(names)}"
        for label, names in (
            ("missing", [name for name in own if name not in tensors]),
            ("unexpected", [name for name in tensors if name not in own]),
            ("of another shape", reshaped),
        )
        if names
    ]
    if problems:
        raise ValueError(f"{where}checkpoint is of another architecture: {'; '.join(problems)}")
    if broken:
        raise DamagedState(f"{where}checkpoint is damaged: {first_few(broken)}")
    with torch.no_grad():
        for name, tensor in sorted(own.items(), key=lambda item: -item[1].numel()):
            tensor.copy_(sharded_like(tensors[name], tensor))


def flaw_of(tensor: Tensor, dtype: torch.dtype) -> str:
    """Say why a tensor cannot stand for one of type `dtype`; empty if it can."""
    if tensor.dtype != dtype and not (tensor.dtype in _FLOATS and dtype in _FLOATS):
        return f"holds {str(tensor.dtype).removeprefix('torch.')} instead of {str(dtype).removeprefix('torch.')}"
    if tensor.dtype not in _FLOATS:
        return ""
    if not is_finite(tensor):
        return "is not finite"
    if dtype == torch.float16 and tensor.numel() and max(abs(float(x)) for x in tensor.aminmax()) > 65504:
        return "has numbers that float16 does not hold; take another dtype"
    return ""


def is_finite(tensor: Tensor) -> bool:
    """Return whether all numbers of a tensor are; at a thirtieth of the time that `isfinite().all()` takes."""
    if tensor.numel() == 0:
        return True
    return bool(torch.stack(tensor.aminmax()).isfinite().all())  # least and greatest are both NaN if one number is


def _names_of_each(module: nn.Module) -> list[list[str]]:
    """Return the names of each tensor of a module's state; tied weights are one tensor with several names."""
    names: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return list(names.values())


def first_few(names: Iterable[str], most: int = 3) -> str:
    """Join names for a message; of many the first few."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
