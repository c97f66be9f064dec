"""The safetensors of a folder, in one file or in shards with an index; each tensor is read when it is asked for.

model.safetensors      or      model.safetensors.index.json, model-00001-of-00002.safetensors, ...
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from hybrid.checkpoints.module_state import first_few
from hybrid.checkpoints.tensor_files import open_tensors
from hybrid.options import shown
from hybrid.storage.json_files import read_object

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CHUNK = 1 << 22
"""Numbers of a tensor that are read at once where it is read piece by piece."""
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def pieces_of(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first row and the end of each piece in which a tensor of this shape is read or written."""
    rows = max(1, CHUNK // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], rows):
        yield start, min(start + rows, shape[0])


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not read yet. The file is opened anew each time: what is read of an open one counts as memory
    of the process."""

    file: Path
    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def dtype(self) -> torch.dtype:
        return _FLOATS[self.kind]

    def read(self) -> Tensor:
        """Read all of it. Raises ValueError if the file does not let it be read."""
        return self._read(lambda file: file.get_tensor(self.name))

    def pieces(self) -> Iterator[tuple[int, Tensor]]:
        """Read a few rows at a time, each piece with the number of its first row."""
        for start, end in pieces_of(self.shape):
            yield start, self._read(lambda file, start=start, end=end: file.get_slice(self.name)[start:end])

    def _read(self, how: Any) -> Tensor:
        try:
            return how(open_tensors(self.file))
        except (SafetensorError, RuntimeError, KeyError) as error:
            raise ValueError(f"{self.name}: cannot be read: {' '.join(str(error).split())}") from None


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Find the tensors of a folder by their names.

    Raises:
        ValueError: files are missing, truncated or lie outside of the folder, the index is not theirs, or a tensor is
            not of a floating type; one line.
    """
    if (folder / SINGLE).is_file():
        return _tensors_in(_inside(folder, SINGLE))
    if not (folder / INDEX).is_file():
        raise ValueError(_no_weights(folder))
    of_name = read_object(folder / INDEX).get("weight_map")
    if not isinstance(of_name, Mapping) or not all(isinstance(file, str) for file in of_name.values()):
        raise ValueError(f"{INDEX}: weight_map {shown(of_name)} does not name a file for each tensor")
    found: dict[str, StoredTensor] = {}
    files = {file: _inside(folder, file) for file in of_name.values()}  # all of them before one is opened
    if gone := [file for file, path in files.items() if not path.is_file()]:
        raise ValueError(f"{INDEX}: files that it names are missing: {first_few(gone)}; copy them into the folder")
    for file, path in files.items():
        tensors = _tensors_in(path)
        listed = {name for name, where in of_name.items() if where == file}
        if other := sorted(listed ^ set(tensors)):
            raise ValueError(f"{INDEX}: {file} does not hold what it lists: {first_few(other)}")
        found |= tensors
    return found


def _no_weights(folder: Path) -> str:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        return (
            "the weights are pickled (pytorch_model.bin), which may run any code, so they are not read; write them as "
            "safetensors with transformers: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    return f"{SINGLE} is missing, and {INDEX}, too; copy the weights into the folder"


def _inside(folder: Path, name: str) -> Path:
    """Return a file of a folder.

    Raises:
        ValueError: its name, or the link that it is, leads out of the folder. The links of a Hub cache may: from
            `snapshots/REVISION` to `blobs` beside it.
    """
    path = folder / name
    if Path(name).name != name or "\\" in name or "\0" in name:
        raise ValueError(f"{INDEX}: {shown(name)} leads out of the folder; shards lie beside their index")
    real, home = path.resolve(), folder.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else None
    if real.parent not in (home, blobs):
        raise ValueError(f"{name}: is a link out of the folder; put the file itself there")
    return path


def _tensors_in(file: Path) -> dict[str, StoredTensor]:
    opened = open_tensors(file)
    found = {}
    for name in opened.keys():  # noqa: SIM118 (it is no mapping)
        entry = opened.get_slice(name)
        found[name] = StoredTensor(file, name, tuple(entry.get_shape()), str(entry.get_dtype()))
    if other := [f"{name} {tensor.kind}" for name, tensor in found.items() if tensor.kind not in _FLOATS]:
        raise ValueError(f"{file.name}: quantised, or no weights: {first_few(other)}; covered are {', '.join(_FLOATS)}")
    return found
