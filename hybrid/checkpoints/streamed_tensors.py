"""Write safetensors files whose tensors are made part by part: memory holds one part, whatever the model's size.

The library's own writer needs all tensors of a file at once. The format is a length, a JSON header and the bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hybrid.storage.atomic import write_json_atomic

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
SHARD_BYTES = 5 * 10**9


def shown_bytes(n: int) -> str:
    """Say a size for a message: in MB, of a tiny model in KB."""
    return f"{n / 1e6:,.0f} MB" if n >= 1e6 else f"{n / 1e3:,.0f} KB"


@dataclass(frozen=True)
class StreamedTensor:
    """A tensor to be written.

    Attributes:
        parts: gives its rows, a few at a time, from the first to the last; of any floating type.
    """

    name: str
    shape: tuple[int, ...]
    parts: Callable[[], Iterable[Tensor]]

    def n_bytes(self, dtype: torch.dtype) -> int:
        return torch.Size(self.shape).numel() * dtype.itemsize


def write_tensors(
    folder: Path, tensors: Sequence[StreamedTensor], dtype: torch.dtype, shard_bytes: int = SHARD_BYTES
) -> int:
    """Write model.safetensors, or shards of at most `shard_bytes` (or one tensor) with model.safetensors.index.json.

    Not atomic in itself: do it inside `new_folder`. Returns the bytes of all tensors.

    Raises:
        ValueError: a weight is not finite in `dtype`; names the tensor.
    """
    shards: list[list[StreamedTensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(each.n_bytes(dtype) for each in [*shards[-1], tensor]) > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    total = sum(tensor.n_bytes(dtype) for tensor in tensors)
    if len(shards) == 1:
        _write_file(folder / "model.safetensors", shards[0], dtype)
        return total
    files = {f"model-{n:05d}-of-{len(shards):05d}.safetensors": shard for n, shard in enumerate(shards, 1)}
    for file, shard in files.items():
        _write_file(folder / file, shard, dtype)
    held_by = {tensor.name: file for file, shard in files.items() for tensor in shard}
    write_json_atomic(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": held_by}
    )
    return total


def _write_file(path: Path, tensors: Sequence[StreamedTensor], dtype: torch.dtype) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.n_bytes(dtype)
        header[tensor.name] = {"dtype": NAMES[dtype], "shape": tensor.shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for tensor in tensors:
            written = sum(file.write(_bytes_of(tensor.name, part, dtype)) for part in tensor.parts())
            assert written == tensor.n_bytes(dtype), tensor.name


def _bytes_of(name: str, part: Tensor, dtype: torch.dtype) -> memoryview:
    part = part.to(dtype).contiguous()
    if not part.isfinite().all():
        raise ValueError(f"{name}: has a weight that is not finite in {str(dtype).removeprefix('torch.')}")
    return part.flatten().view(torch.uint8).numpy().data
