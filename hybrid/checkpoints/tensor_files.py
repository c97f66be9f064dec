"""Named tensors in safetensors files: a group of them in one file, or in one per rank where ranks share the tensors.

model.safetensors                       or        model.00000-of-00002.safetensors, model.00001-of-00002.safetensors
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hybrid.distributed import Ranks, local
from hybrid.storage.pointers import advice

_PART = re.compile(r".+\.(\d{5})-of-(\d{5})\.safetensors")


def save_group(named: Mapping[str, Tensor], folder: Path, group: str, ranks: Ranks) -> None:
    """Write a group of tensors: the first rank what all have, each rank what it holds of those that are sharded."""
    sharded = {name for name, tensor in named.items() if local(tensor) is not tensor}
    mine = {name: local(tensor) for name, tensor in named.items() if name in sharded or ranks.is_main}
    if sharded:
        save_tensors(mine, folder / f"{group}.{ranks.rank:05d}-of-{ranks.world:05d}.safetensors")
    elif ranks.is_main:
        save_tensors(mine, folder / f"{group}.safetensors")


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write a safetensors file (not atomic in itself: do it inside `new_folder`)."""
    save_file(_separate(tensors), file)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy to contiguous CPU tensors, each with memory of its own (safetensors refuses tensors that share it)."""
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


def open_tensors(file: Path) -> Any:
    """Open a safetensors file. Raises ValueError, in one line, if it is missing, truncated or none."""
    try:
        return safe_open(file, "pt")
    except FileNotFoundError:
        raise ValueError(f"{file}: is missing") from None
    except (OSError, SafetensorError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{file}: is truncated or not a safetensors file: {why}; {advice(file)}") from None


def has_group(checkpoint: Path, group: str) -> bool:
    """Return whether a checkpoint has this group of tensors."""
    return bool(_files_of(checkpoint, group))


def load_group(checkpoint: Path, group: str) -> Mapping[str, Tensor]:
    """Open a group of tensors by name, full, however many ranks have written it. Each is read when it is asked for.

    Raises:
        ValueError: a file is missing, truncated or no safetensors file; one line.
    """
    files = _files_of(checkpoint, group) or [checkpoint / f"{group}.safetensors"]
    if found := _PART.fullmatch(files[0].name):
        world = int(found.group(2))
        if [file.name for file in files] != [f"{group}.{rank:05d}-of-{world:05d}.safetensors" for rank in range(world)]:
            raise ValueError(f"{checkpoint}: {len(files)} of the {world} files of {group} are there, or not only they")
    return _ShardedGroup(files)


def _files_of(checkpoint: Path, group: str) -> list[Path]:
    return sorted(
        file
        for file in Path(checkpoint).glob(f"{group}.*safetensors")
        if file.name == f"{group}.safetensors" or _PART.fullmatch(file.name)
    )


class _ShardedGroup(Mapping[str, Tensor]):
    """Tensors whose first dimension is sharded over files; what is in one file only is full.

    A file is opened for each tensor: pages of one that stays open count as memory of the process, all of them in the
    end.
    """

    def __init__(self, files: list[Path]):
        self.files = [(file, list(open_tensors(file).keys())) for file in files]
        self.names = dict.fromkeys(name for _, names in self.files for name in names)

    def __getitem__(self, name: str) -> Tensor:
        holders = [file for file, names in self.files if name in names]
        if not holders:
            raise KeyError(name)
        try:
            parts = [open_tensors(file).get_tensor(name) for file in holders]
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name}: cannot be read: {' '.join(str(error).split())}") from None
        if len(parts) == 1:
            return parts[0]
        if len({(part.dtype, part.ndim, part.shape[1:]) for part in parts}) > 1 or parts[0].ndim == 0:
            kinds = ", ".join(f"{list(part.shape)} {part.dtype}" for part in parts[:3])
            raise ValueError(f"{name}: its parts of {len(parts)} ranks do not fit together: {kinds}")
        return torch.cat(parts)

    def __contains__(self, name: object) -> bool:
        return name in self.names  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
