"""What lies at a path that is taken for a model and is none: what it is, and how a model is had from it."""

from __future__ import annotations

import os
from pathlib import Path

_MARKS = ("tokenizer.json", "model.safetensors.index.json")
"""Files beside the weights of a Hugging Face model; ours has its tokenizer in a folder of its own."""


def lookalike(path: Path) -> str | None:
    """Return what a path holds instead of a model, and the way out; None if nothing is known about it."""
    if path.suffix == ".gguf" and os.path.isfile(path):  # of any text as a path
        return f"is a GGUF file; python -m hybrid.convert {path} FOLDER writes a folder that can be loaded"
    if not os.path.isdir(path):
        return None
    if (path / "adapter_config.json").is_file():
        return "holds an adapter (LoRA) without its model; merge them with peft (merge_and_unload), and save the result"
    files = sorted(path.glob("*.gguf"))
    if files and not any(path.glob("*.safetensors")):
        return f"holds a GGUF file; python -m hybrid.convert {files[0]} FOLDER writes a folder that can be loaded"
    if any((path / name).is_file() for name in _MARKS) and not (path / "config.json").is_file():
        return "has no config.json, which says what model it is; copy all files of the model into the folder"
    return None
