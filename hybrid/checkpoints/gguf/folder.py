"""Write a folder in the format of Hugging Face from a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybrid.checkpoints.gguf.families import Target, config_of, targets_of
from hybrid.checkpoints.gguf.reading import GGUFFile
from hybrid.checkpoints.gguf.tokenizer import special_ids, tokenizer_config, tokenizer_of
from hybrid.checkpoints.streamed_tensors import SHARD_BYTES, StreamedTensor, write_tensors
from hybrid.storage.atomic import write_json_atomic
from hybrid.storage.folders import new_folder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PART = 2**20
"""Weights that are dequantised at a time, about."""


def write_folder(
    file: GGUFFile, folder: Path, dtype: str = "float32", shard_bytes: int = SHARD_BYTES
) -> dict[str, Any]:
    """Write config.json, model.safetensors, tokenizer.json, tokenizer_config.json and generation_config.json.

    The folder appears when it is complete. Returns what was written: `config`, and `bytes` of the weights.

    Raises:
        ValueError: the folder exists and is not empty, or the file holds what is not covered; one line.
        OSError: it could not be written.
    """
    config = config_of(file)
    targets = targets_of(file, config)
    tokenizer = tokenizer_of(file, config["vocab_size"])
    ids = special_ids(file, config["vocab_size"])
    config |= {**ids, "torch_dtype": dtype}
    with new_folder(folder, manifest=False) as temporary:
        n_bytes = write_tensors(temporary, [_streamed(file, target) for target in targets], DTYPES[dtype], shard_bytes)
        tokenizer.save(str(temporary / "tokenizer.json"))
        write_json_atomic(temporary / "tokenizer_config.json", tokenizer_config(file, ids, config))
        write_json_atomic(temporary / "generation_config.json", ids)
        write_json_atomic(temporary / "config.json", config)
    return {"config": config, "bytes": n_bytes}


def _streamed(file: GGUFFile, target: Target) -> StreamedTensor:
    def parts() -> Iterator[Tensor]:
        unit = target.heads or 1
        step = max(PART // (unit * torch.Size(target.shape[1:]).numel()), 1) * unit
        for start in range(0, target.shape[0], step):
            rows = file.rows(target.source, start, min(start + step, target.shape[0]))
            yield torch.tensor(target.ordered(rows))  # a copy: torch warns of memory that can't be written to

    return StreamedTensor(target.name, target.shape, parts)
