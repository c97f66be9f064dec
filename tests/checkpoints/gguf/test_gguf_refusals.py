"""What is damaged or not covered is refused in one line that says what it is, and leaves nothing behind."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import write_gguf

from hybrid.checkpoints.gguf import GGUFFile, write_folder


def refused(path: Path, folder: Path) -> str:
    with pytest.raises(ValueError) as error:
        write_folder(GGUFFile(path), folder)
    assert "\n" not in str(error.value) and not folder.exists()
    return str(error.value)


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({"llama.expert_count": 8}, "is a mixture of experts, which is not covered; dense models are"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type yarn is not covered; that of Llama 3.1 is"),
        ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count is not the width of a head, 16"),
        ({"llama.attention.key_length": 15}, "a head is 15 wide; rotary positions need an even width"),
        ({"llama.attention.value_length": 8}, "llama.attention.value_length is not the width of a head, 16"),
        ({"llama.attention.sliding_window": 64}, "llama.attention.sliding_window: a sliding window is not covered"),
        ({"llama.block_count": None}, "has no llama.block_count"),
        ({"llama.block_count": 0}, "llama.block_count is 0; it must be at least 1"),
        ({"llama.block_count": 1}, "its tensors are not those of its settings: blk.1.attn_norm.weight is not expected"),
        ({"llama.block_count": 3}, r"blk.2.attn_norm.weight is missing, .*, and 1 more$"),
        ({"llama.block_count": 2**32 - 1}, "llama.block_count is 4294967295, and there are 20 tensors"),
        ({"llama.rope.freq_base": float("nan")}, "llama.rope.freq_base is nan, which is not finite"),
        ({"llama.attention.head_count_kv": [2, 2]}, r"head_count_kv is \[2, 2\]; it must be of type int"),
        ({"llama.attention.head_count_kv": 1}, r"blk.0.attn_k.weight is \[32, 64\] instead of \[16, 64\]"),
        ({"llama.embedding_length": "64"}, "llama.embedding_length is '64'; it must be of type int"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "has no llama.attention.layer_norm_rms_epsilon"),
    ],
)
def test_settings_that_are_not_covered(metadata: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "x.gguf", metadata=metadata)
    with pytest.raises(ValueError, match=message):
        write_folder(GGUFFile(file), tmp_path / "x")
    assert refused(file, tmp_path / "x").startswith(f"{file}: ")


@pytest.mark.parametrize("architecture", ["gemma3", "qwen3moe", "gpt2"])
def test_an_architecture_that_is_not_covered(architecture: str, tmp_path: Path) -> None:
    text = refused(write_gguf(tmp_path / "x.gguf", architecture), tmp_path / "x")
    assert text.endswith(f"its architecture {architecture} is not covered; llama, qwen2, qwen3 are")


@pytest.mark.parametrize(
    "name, tensor, message",
    [
        ("token_embd.weight", None, "has no matrix token_embd.weight"),
        ("output_norm.weight", None, "output_norm.weight is missing"),
        ("blk.0.attn_q.bias", np.zeros(64, np.float32), "blk.0.attn_q.bias is not expected"),
        ("rope_freqs.weight", np.full(8, 2, np.float32), "the factors in rope_freqs.weight are not those of Llama 3.1"),
    ],
)
def test_tensors_that_do_not_fit(name: str, tensor: np.ndarray | None, message: str, tmp_path: Path) -> None:
    assert message in refused(write_gguf(tmp_path / "x.gguf", tensors={name: tensor}), tmp_path / "x")


def test_a_type_of_the_future(tmp_path: Path) -> None:
    """Of the types, one that is in no list, and one that the package knows and can't read."""
    for number, message in ((99, "is not a valid GGMLQuantizationType"), (24, "output_norm.weight is stored as I8")):
        file = write_gguf(tmp_path / "x.gguf")
        content = bytearray(file.read_bytes())
        at = content.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8
        assert content[at : at + 4] == bytes(4)
        content[at] = number
        file.write_bytes(content)
        assert message in refused(file, tmp_path / "x")


@pytest.mark.parametrize(
    "content, message",
    [(b"", "begins with b''"), (b"GGU", "begins with b'GGU'"), (b"PK\3\4" * 9, "safetensors need no conversion"),
     (b"GGUF", "truncated"), (b"GGUF" + bytes([9, 0, 0, 0]) + bytes(16), "version 9")],
)  # fmt: skip
def test_another_file(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    assert message in refused(tmp_path / "x.gguf", tmp_path / "x")


def test_a_file_that_was_cut(tmp_path: Path) -> None:
    content = write_gguf(tmp_path / "whole.gguf").read_bytes()
    for i in range(20):
        cut = tmp_path / "x.gguf"
        cut.write_bytes(content[: len(content) * i // 20])
        text = refused(cut, tmp_path / "x")
        assert i == 0 or "truncated" in text


def test_the_length_of_a_list_is_not_believed(tmp_path: Path) -> None:
    """2**60 types of tokens: the package alone would collect them until memory ends."""
    file = write_gguf(tmp_path / "x.gguf")
    content = bytearray(file.read_bytes())
    at = content.index(b"tokenizer.ggml.token_type") + len(b"tokenizer.ggml.token_type") + 8
    content[at + 7] = 16
    file.write_bytes(content)
    assert f"a list of {2**60 + 265} values" in refused(file, tmp_path / "x")


def test_bytes_that_were_changed(tmp_path: Path) -> None:
    """In what stands before the weights: either it is a model still, or one line says that it is none."""
    content = write_gguf(tmp_path / "whole.gguf").read_bytes()
    rng = random.Random(0)
    errors = []
    for n in range(100):
        damaged = bytearray(content)
        for at in rng.sample(range(content.index(b"output_norm")), 4):
            damaged[at] = rng.randrange(256)
        (tmp_path / "x.gguf").write_bytes(damaged)
        try:
            write_folder(GGUFFile(tmp_path / "x.gguf"), tmp_path / str(n))
        except ValueError as error:
            errors.append(str(error))
            continue
        assert (tmp_path / str(n) / "config.json").is_file()
    assert len(errors) > 60 and not any("\n" in error for error in errors)
    assert all(error.startswith(f"{tmp_path / 'x.gguf'}: ") for error in errors)
