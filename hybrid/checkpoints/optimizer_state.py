"""Turn the state of an optimizer into named tensors and JSON, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from hybrid.checkpoints.module_state import DamagedState, first_few, flaw_of
from hybrid.distributed import sharded_like
from hybrid.options import bare, shown

# How an optimizer computes, not what: these belong to the machine, so they stay as they are when a state is restored.
_MACHINE_OPTIONS = {"foreach", "fused", "capturable", "differentiable"}


def flatten_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state of an optimizer as tensors `key/parameter` (not copied) and a dict for JSON.

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
        ValueError: the state is of another optimizer, its groups hold other parameters, or what it holds of them does
            not fit; one line that names the first few, and nothing has been restored.
    """
    groups, numbers = _checked_meta(optimizer, names, meta)
    states: dict[str, dict[str, Any]] = {name: dict(values) for name, values in numbers.items()}
    own = {name: parameter for parameter, name in names.items()}
    flaws = []
    for full_name in (name for name in tensors if name.startswith(prefix)):
        key, _, name = full_name.removeprefix(prefix).partition("/")
        if name not in own:
            flaws.append(f"unexpected {full_name}")
            continue
        states.setdefault(name, {})[key] = tensors[full_name]
    flaws += _flaws_of_states(optimizer, names, states)
    if flaws:
        raise DamagedState(f"optimizer: what the checkpoint holds does not fit: {first_few(flaws)}")
    for name, state in states.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                state[key] = (sharded_like(value, own[name]) if value.shape == own[name].shape else value).clone()
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    index = {name: position for position, name in enumerate(order)}
    # Optimizer.load_state_dict knows on which device and in which type each state belongs; it wants torch's own layout.
    layout = optimizer.state_dict()
    for group, saved in zip(layout["param_groups"], groups, strict=True):
        for key in set(saved) - {"params"}:
            group[key] = _like(saved[key], group.get(key))
    optimizer.load_state_dict({**layout, "state": {index[name]: state for name, state in states.items()}})


def _checked_meta(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str], meta: Any
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return the groups and the numbers of `flatten_optimizer`'s dict, if it is one and of such an optimizer."""
    kinds = {"class": str, "groups": list, "numbers": dict}
    if not isinstance(meta, Mapping) or not all(isinstance(meta.get(key), kind) for key, kind in kinds.items()):
        raise DamagedState(f"optimizer: the checkpoint's state.json has {shown(meta)} instead of what describes one")
    if meta["class"] != type(optimizer).__name__:
        raise ValueError(
            f"optimizer: the checkpoint's is {bare(meta['class'])}, this one is {type(optimizer).__name__}"
        )
    order = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
    if order != [isinstance(group, dict) and group.get("params") for group in meta["groups"]]:
        raise ValueError("optimizer: the checkpoint's parameter groups differ from this model's; start with init_from")
    for group, saved in zip(optimizer.param_groups, meta["groups"], strict=True):
        for key in set(saved) - {"params"}:
            if _kind(saved[key]) != _kind(group.get(key)):
                raise DamagedState(
                    f"optimizer: the checkpoint has {key}: {shown(saved[key])}, not like {group.get(key)!r}"
                )
    if not all(isinstance(values, dict) for values in meta["numbers"].values()):
        raise DamagedState(
            f"optimizer: the checkpoint's numbers are {shown(meta['numbers'])}, not a mapping of mappings"
        )
    return meta["groups"], meta["numbers"]


def _kind(value: Any) -> Any:
    """Return what of a hyperparameter cannot change: whether it is a number or a text, and how many of them."""
    if isinstance(value, (list, tuple)):
        return [_kind(item) for item in value]
    if isinstance(value, Tensor):
        return float
    return float if type(value) is int else type(value)


def _flaws_of_states(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str], states: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """Say what is wrong with the states of parameters, by name. An optimizer that has not stepped has none."""
    if not states:
        return
    yield from (f"unexpected {name}" for name in set(states) - set(names.values()))
    for group in optimizer.param_groups:
        likely: dict[int, dict[str, Any]] = {}  # number of dimensions -> the state of such a parameter
        for parameter in group["params"]:
            name, ndim = names[parameter], parameter.ndim
            if ndim not in likely:
                likely[ndim] = _state_after_a_step(optimizer, group, parameter)
            expected, found = likely[ndim], states.get(name, {})
            yield from (f"missing {key}/{name}" for key in expected if key not in found)
            yield from (f"unexpected {key}/{name}" for key in found if key not in expected)
            for key in set(expected) & set(found):
                flaw = _flaw_of_state(found[key], expected[key], parameter.shape)
                if flaw:
                    yield f"{key}/{name} {flaw}"


def _state_after_a_step(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], parameter: Tensor
) -> dict[str, Any]:
    """Return what this optimizer keeps of a parameter with as many dimensions, whose sizes are 2, 3, ..."""
    sample = nn.Parameter(torch.ones(tuple(range(2, 2 + parameter.ndim)), dtype=parameter.dtype))
    sample.grad = torch.ones_like(sample)
    options = {key: value for key, value in group.items() if key not in _MACHINE_OPTIONS | {"params"}}
    kind: Any = type(optimizer)
    trial = kind([{"params": [sample], **options}])
    trial.step()
    return dict(trial.state[sample])


def _flaw_of_state(value: Any, expected: Any, shape: torch.Size) -> str:
    if not isinstance(expected, Tensor):
        return "" if _kind(value) == _kind(expected) else f"is {shown(value)} instead of a number"
    if not isinstance(value, Tensor):
        return f"is {shown(value)} instead of a tensor"
    sizes = dict(zip(range(2, 2 + len(shape)), shape, strict=True))
    wanted = [sizes.get(size, size) for size in expected.shape]
    if list(value.shape) != wanted:
        return f"has shape {list(value.shape)} instead of {wanted}"
    return flaw_of(value, expected.dtype)


def _like(value: Any, current: Any) -> Any:
    """Convert a value read from JSON to the type that the optimizer has now: JSON knows no tuples and no tensors."""
    if isinstance(current, Tensor):
        return torch.full_like(current, value)
    return tuple(value) if isinstance(value, list) and isinstance(current, tuple) else value
