"""Checkpoints: named tensors (safetensors) and JSON in a folder that is either complete or absent.

checkpoints/
  step-00000200/
    model.safetensors, ema.safetensors, ...   one file per group of tensors; of a model that ranks share
                                              (trainer.parallel=fsdp) one per rank: model.00000-of-00002.safetensors
    state.json                                the rest of what resuming needs
    manifest.json                             size and SHA-256 of each file
  step-00000300/
  latest                                      text: the name of a folder
  best                                        text: the name of a folder, and its value
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hybrid.atomic import (
    MANIFEST,
    clean_up,
    new_folder,
    read_json,
    remove_folder,
    verify_folder,
    write_json_atomic,
    write_text_atomic,
)
from hybrid.ranks import ALONE, Ranks, part, spread

_log = logging.getLogger(__name__)
_STEP = re.compile(r"step-(\d+)(?:\.replaced)?")
_PART = re.compile(r".+\.(\d{5})-of-(\d{5})\.safetensors")
# How an optimizer computes, not what: these belong to the machine, so they stay as they are when a state is restored.
_MACHINE_OPTIONS = {"foreach", "fused", "capturable", "differentiable"}


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any],
    ranks: Ranks = ALONE,
) -> Path:  # fmt: skip
    """Write `folder/step-N` (a file per group of `tensors`, and `state` as JSON), then point `latest` at it.

    Whatever happens on the way, earlier checkpoints and `latest` stay as they are. A checkpoint of the same step is
    replaced. Only one job may save into a folder, all ranks of it together: the first writes what all have, each writes
    what it holds of tensors that are spread over them. The folder must be one that all machines see.

    Raises:
        ValueError: `state` holds what JSON cannot (a number that is not finite, say).
        OSError: it could not be written (disk full, say); one line.
    """
    folder = Path(folder)
    target = folder / f"step-{step:08d}"
    with _folder_of_all(target, ranks) as temporary:
        for group, named in tensors.items():
            _save_group(named, temporary, group, ranks)
        if ranks.is_main:
            write_json_atomic(temporary / "state.json", state, strict=True)
    if ranks.is_main:
        write_text_atomic(folder / "latest", f"{target.name}\n")
    ranks.wait()
    return target


@contextmanager
def _folder_of_all(target: Path, ranks: Ranks) -> Iterator[Path]:
    """`new_folder`, into which every rank writes; it is in place when the block has ended on all of them."""
    if not ranks.is_main:
        yield Path(ranks.gather(None)[0])
        ranks.wait()
        return
    clean_up(target.parent)
    with new_folder(target, overwrite=True) as temporary:
        ranks.gather(str(temporary))
        yield temporary
        ranks.wait()


def _save_group(named: Mapping[str, Tensor], folder: Path, group: str, ranks: Ranks) -> None:
    spread = {name for name, tensor in named.items() if part(tensor) is not tensor}
    mine = {name: part(tensor) for name, tensor in named.items() if name in spread or ranks.is_main}
    if spread:
        save_tensors(mine, folder / f"{group}.{ranks.rank:05d}-of-{ranks.world:05d}.safetensors")
    elif ranks.is_main:
        save_tensors(mine, folder / f"{group}.safetensors")


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write a safetensors file (not atomic in itself: do it inside `new_folder`)."""
    save_file(_separate(tensors), file)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, each with memory of its own (safetensors refuses tensors that share it)."""
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().to("cpu").contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.numel() * tensor.element_size():
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        result[name] = tensor
    return result


def mark_best(folder: Path, checkpoint: Path, value: float) -> None:
    """Point `best` at a checkpoint of `folder`; `prune` keeps it.

    Raises:
        ValueError: `value` is not finite.
        OSError: the pointer could not be written.
    """
    if not math.isfinite(value):
        raise ValueError(f"best: {value!r} is not finite and cannot be compared with later values")
    write_text_atomic(Path(folder) / "best", f"{checkpoint.name}\n{value!r}\n")


def read_best(folder: Path) -> tuple[Path, float] | None:
    """The best checkpoint and its value; None if there is none."""
    try:
        name, value = (Path(folder) / "best").read_text(encoding="utf-8").split()
        checkpoint = Path(folder) / name
        return (checkpoint, float(value)) if _STEP.fullmatch(name) and checkpoint.is_dir() else None
    except (OSError, ValueError):
        return None


def prune(folder: Path, keep_last: int) -> None:
    """Remove all checkpoints but the `keep_last` saved last, the one `latest` names and the best.

    Raises:
        ValueError: `keep_last` is less than 1.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last: {keep_last} is too small; at least the latest checkpoint must be kept")
    checkpoints = list_checkpoints(folder)
    best = read_best(folder)
    kept = {*checkpoints[-keep_last:], _read_pointer(Path(folder) / "latest"), best and best[0]}
    for checkpoint in checkpoints:
        if checkpoint not in kept:
            remove_folder(checkpoint)


def list_checkpoints(folder: Path) -> list[Path]:
    """The step folders in a folder of checkpoints, in the order in which they were saved; damaged ones among them.

    The order is that of saving, not of the step: after going back to an earlier step, the later ones are older.
    """
    folder = Path(folder)
    paths = folder.iterdir() if folder.is_dir() else []
    return sorted((path for path in paths if _STEP.fullmatch(path.name) and path.is_dir()), key=_age)


def _age(checkpoint: Path) -> tuple[int, str]:
    try:
        return int(read_json(checkpoint / MANIFEST)["saved_ns"]), checkpoint.name
    except (ValueError, TypeError, KeyError):
        return -1, checkpoint.name


def step_of(checkpoint: Path) -> int:
    """The step in the name of a step folder.

    Raises:
        ValueError: it is not a step folder.
    """
    match = _STEP.fullmatch(Path(checkpoint).name)
    if match is None:
        raise ValueError(f"{checkpoint}: is not a checkpoint folder (step-N)")
    return int(match.group(1))


def find_checkpoint(path: str | Path, which: Literal["latest", "best"] = "latest") -> Path:
    """The verified checkpoint that `path` means: a run folder, its `checkpoints`, a step folder or a saved model.

    In the first two cases it is the one that `which` names. If `latest` or what it names is damaged, the newest
    checkpoint that is not takes its place and a warning says so; nothing replaces `best`. Changes nothing on the disk.

    Raises:
        ValueError: there is nothing at `path`, or nothing undamaged; one line.
    """
    path = Path(path)
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ValueError(f"checkpoint: {path} {what}; give the folder of a run, of a checkpoint or of a saved model")
    if (path / MANIFEST).is_file() or _STEP.fullmatch(path.name):
        verify_folder(path)
        return path
    if (path / "model.safetensors").is_file():  # a saved model that lost its manifest (copied by hand, say)
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        raise ValueError(f"checkpoint: {path} holds no checkpoint; was the run stopped before its first save?")
    if which == "best":
        best = read_best(folder)
        if best is None:
            raise ValueError(f"checkpoint: {folder / 'best'} names no checkpoint; use the latest")
        verify_folder(best[0])
        return best[0]
    return _latest_undamaged(folder, checkpoints)


def _latest_undamaged(folder: Path, checkpoints: list[Path]) -> Path:
    problems: list[str] = []
    order = checkpoints[::-1]
    pointer = folder / "latest"
    named = _read_pointer(pointer)
    if named is not None:
        order = [named, *(checkpoint for checkpoint in order if checkpoint != named)]
    elif pointer.exists():
        problems.append(f"{pointer}: is corrupt (it names no checkpoint)")
    for checkpoint in order:
        try:
            verify_folder(checkpoint)
        except ValueError as error:
            problems.append(str(error))
            continue
        if problems:
            _log.warning("%s; using step %d (%s) instead", "; ".join(problems), step_of(checkpoint), checkpoint)
        return checkpoint
    raise ValueError(
        f"checkpoint: none in {folder} is usable: {'; '.join(problems)}; restore one from a copy or start a new run"
    )


def _read_pointer(pointer: Path) -> Path | None:
    try:
        name = pointer.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return pointer.with_name(name) if _STEP.fullmatch(name) else None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The `state` given to `save_checkpoint`.

    Raises:
        ValueError: it is missing or not a JSON object.
    """
    state = read_json(Path(checkpoint) / "state.json")
    if not isinstance(state, dict):
        raise ValueError(f"{checkpoint}: its state.json holds a {type(state).__name__} instead of an object")
    return state


def load_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name.

    Raises:
        ValueError: it is missing, truncated or no safetensors file; one line.
    """
    opened = _open(file)
    return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def _open(file: Path) -> Any:
    try:
        return safe_open(file, "pt")
    except FileNotFoundError:
        raise ValueError(f"{file}: is missing") from None
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: is truncated or not a safetensors file: {' '.join(str(error).split())}") from None


def has_group(checkpoint: Path, group: str) -> bool:
    """Whether a checkpoint has this group of tensors."""
    return bool(_files_of(checkpoint, group))


def load_group(checkpoint: Path, group: str) -> Mapping[str, Tensor]:
    """A group of tensors by name, whole, however many ranks have written it; each is read when it is asked for.

    Raises:
        ValueError: a file is missing, truncated or no safetensors file; one line.
    """
    files = _files_of(checkpoint, group) or [checkpoint / f"{group}.safetensors"]
    if (found := _PART.fullmatch(files[0].name)) and len(files) != int(found.group(2)):
        raise ValueError(f"{checkpoint}: {len(files)} of the {int(found.group(2))} files of {group} are there")
    return _Parts([_open(file) for file in files])


def _files_of(checkpoint: Path, group: str) -> list[Path]:
    return sorted(
        file
        for file in Path(checkpoint).glob(f"{group}.*safetensors")
        if file.name == f"{group}.safetensors" or _PART.fullmatch(file.name)
    )


class _Parts(Mapping[str, Tensor]):
    """Tensors whose first dimension is spread over files; what is in one file only is whole."""

    def __init__(self, files: list[Any]):
        self.files = [(file, set(file.keys())) for file in files]
        self.names = list(dict.fromkeys(name for file in files for name in file.keys()))  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        parts = [file.get_tensor(name) for file, names in self.files if name in names]
        if not parts:
            raise KeyError(name)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; one that has several names (tied weights) under its first only."""
    state = module.state_dict()
    return {names[0]: state[names[0]] for names in _names_of_each(module)}


def load_state(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into a module; names and shapes must be the same (of tied weights, one name is enough).

    Raises:
        ValueError: they are not; one line with the first few that differ, and nothing has been copied.
    """
    own = module.state_dict()
    missing = [names[0] for names in _names_of_each(module) if not any(name in tensors for name in names)]
    unexpected = [name for name in tensors if name not in own]
    reshaped = [
        f"{name} {list(tensors[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    problems = [
        f"{label} {_first_few(names)}"
        for label, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if names
    ]
    if problems:
        raise ValueError(f"checkpoint is of another architecture: {'; '.join(problems)}")
    with torch.no_grad():
        for name in tensors:
            own[name].copy_(spread(tensors[name], own[name]))


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
