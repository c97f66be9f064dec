"""The state of modules and optimizers as named tensors, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from hybrid.ranks import spread

# How an optimizer computes, not what: these belong to the machine, so they stay as they are when a state is restored.
_MACHINE_OPTIONS = {"foreach", "fused", "capturable", "differentiable"}


_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; one that has several names (tied weights) under its first only."""
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
    found = fitting(tensors, {**given, **{name: own[name] for name in optional}}, "")
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(spread(tensor, own[name]))


def fitting(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors, each read once, if they can take the place of `own`: the same names and shapes, finite numbers.

    Raises:
        ValueError: they cannot; one line that begins with `where` and names the first few.
    """
    found = {name: tensors[name] for name in tensors if name in own}
    reshaped = [
        f"{name} {list(tensor.shape)} instead of {list(own[name].shape)}"
        for name, tensor in found.items()
        if tensor.shape != own[name].shape
    ]
    problems = [
        f"{label} {_first_few(names)}"
        for label, names in (
            ("missing", [name for name in own if name not in found]),
            ("unexpected", [name for name in tensors if name not in own]),
            ("of another shape", reshaped),
        )
        if names
    ]
    if problems:
        raise ValueError(f"{where}checkpoint is of another architecture: {'; '.join(problems)}")
    broken = [f"{name} {why}" for name, tensor in found.items() if (why := _flaw(tensor, own[name].dtype))]
    if broken:
        raise ValueError(f"{where}checkpoint is damaged: {_first_few(broken)}; take another one")
    return found


def _flaw(tensor: Tensor, dtype: torch.dtype) -> str:
    """Why a tensor cannot stand for one of type `dtype`; empty if it can."""
    if tensor.dtype != dtype and not (tensor.dtype in _FLOATS and dtype in _FLOATS):
        return f"holds {str(tensor.dtype).removeprefix('torch.')} instead of {str(dtype).removeprefix('torch.')}"
    if tensor.dtype not in _FLOATS or tensor.numel() == 0:
        return ""
    ends = torch.stack(tensor.aminmax())  # both are NaN if one number is
    return "" if bool(ends.isfinite().all()) else "is not finite"


def _names_of_each(module: nn.Module) -> list[list[str]]:
    """The names of each tensor of a module's state; tied weights are one tensor with several names."""
    names: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return list(names.values())


def _first_few(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def flatten_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of an optimizer as tensors `key/parameter` (not copied) and a dict for JSON.

    Raises:
        ValueError: a parameter has no name, or a state is neither a tensor nor a number.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for parameter, state in optimizer.state.items():
        name = names.get(cast(nn.Parameter, parameter))
        if name is None:
            raise ValueError(f"optimizer: a parameter of shape {list(parameter.shape)} has no name")
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{key}/{name}"] = value.detach()
            elif value is None or isinstance(value, (bool, int, float, str)):
                numbers.setdefault(name, {})[key] = value
            else:
                raise ValueError(f"optimizer: state {key!r} of {name} is a {type(value).__name__}, no tensor or number")
    groups = [
        {key: value for key, value in group.items() if key not in _MACHINE_OPTIONS | {"params"}}
        | {"params": [names[parameter] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    return tensors, {"class": type(optimizer).__name__, "groups": groups, "numbers": numbers}


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Mapping[nn.Parameter, str],
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    prefix: str = "",
) -> None:
    """Undo `flatten_optimizer`: states, and the hyperparameters of the groups (the learning rate among them).

    Of `tensors` those are read whose name begins with `prefix`, one at a time.

    Raises:
        ValueError: the state is of another optimizer, or its groups hold other parameters.
    """
    if meta["class"] != type(optimizer).__name__:
        raise ValueError(f"optimizer: the checkpoint's is {meta['class']}, this one is {type(optimizer).__name__}")
    order = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
    if order != [group["params"] for group in meta["groups"]]:
        raise ValueError("optimizer: the checkpoint's parameter groups differ from this model's; start with init_from")
    own = {name: parameter for parameter, name in names.items()}
    states: dict[str, dict[str, Any]] = {name: dict(values) for name, values in meta["numbers"].items()}
    for full_name in (name for name in tensors if name.startswith(prefix)):
        key, name = full_name.removeprefix(prefix).split("/", 1)
        tensor = tensors[full_name]
        if tensor.shape == own[name].shape:
            tensor = spread(tensor, own[name])
        states.setdefault(name, {})[key] = tensor.clone()
    index = {name: position for position, name in enumerate(name for group in order for name in group)}
    # Optimizer.load_state_dict knows on which device and in which type each state belongs; it wants torch's own layout.
    layout = optimizer.state_dict()
    for group, saved in zip(layout["param_groups"], meta["groups"], strict=True):
        for key in set(saved) - {"params"}:
            group[key] = _like(saved[key], group.get(key))
    optimizer.load_state_dict({**layout, "state": {index[name]: state for name, state in states.items()}})


def _like(value: Any, current: Any) -> Any:
    """A value read from JSON as the type that the optimizer has now (JSON knows no tuples and no tensors)."""
    if isinstance(current, Tensor):
        return torch.full_like(current, value)
    return tuple(value) if isinstance(value, list) and isinstance(current, tuple) else value
