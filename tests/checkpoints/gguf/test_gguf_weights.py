"""The weights of a GGUF file arrive by the names, in the order and with the values that they had before llama.cpp."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_files import DIM, HEADS, gguf, head_dim, permuted, weights, write_gguf
from safetensors import safe_open

from hybrid.checkpoints.gguf import GGUFFile, folder, write_folder
from hybrid.storage.json_files import read_json


def read(file: Path) -> dict[str, torch.Tensor]:
    with safe_open(file, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.offset_keys()}


def as_stored(weight: np.ndarray, kind: str) -> torch.Tensor:
    """What is left of a weight in a file; vectors are never quantised."""
    of_kind = gguf.GGMLQuantizationType[kind if weight.ndim == 2 else "F32"]
    return torch.tensor(gguf.quants.dequantize(gguf.quants.quantize(weight, of_kind), of_kind))


@pytest.mark.parametrize(
    "architecture, kind, tied",
    [("llama", "F32", True), ("llama", "F16", False), ("llama", "BF16", True), ("llama", "Q8_0", True),
     ("llama", "Q4_1", False), ("qwen2", "F32", True), ("qwen2", "Q8_0", False), ("qwen3", "F32", False)],
)  # fmt: skip
def test_weights_arrive(
    architecture: str, kind: str, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "PART", 40 * DIM)  # several parts a tensor, the last one shorter
    given = weights(architecture, tied)
    write_folder(GGUFFile(write_gguf(tmp_path / "x.gguf", architecture, given, kind)), tmp_path / "x")
    found = read(tmp_path / "x" / "model.safetensors")
    assert found.keys() == given.keys()
    for name, weight in given.items():
        assert torch.equal(found[name], as_stored(weight, kind)), name
    config = read_json(tmp_path / "x" / "config.json")
    assert (config["tie_word_embeddings"], config["head_dim"]) == (tied, head_dim(architecture))
    assert config["rms_norm_eps"] == 1e-6  # and not its neighbour in float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_rounded_to_the_dtype(dtype: str, tmp_path: Path) -> None:
    write_folder(GGUFFile(write_gguf(tmp_path / "x.gguf")), tmp_path / "x", dtype)
    found = read(tmp_path / "x" / "model.safetensors")
    assert read_json(tmp_path / "x" / "config.json")["torch_dtype"] == dtype
    for name, weight in weights("llama").items():
        assert torch.equal(found[name], torch.tensor(weight).to(getattr(torch, dtype))), name


@pytest.mark.parametrize("value", [float("nan"), 1e5])
def test_what_a_dtype_cannot_hold_is_refused(value: float, tmp_path: Path) -> None:
    given = weights("llama")
    given["model.norm.weight"][3] = value
    file = GGUFFile(write_gguf(tmp_path / "x.gguf", of=given))
    with pytest.raises(ValueError, match=r"^model\.norm\.weight: has a weight that is not finite in float16$"):
        write_folder(file, tmp_path / "x", "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


def test_shards_hold_what_one_file_holds(tmp_path: Path) -> None:
    file = GGUFFile(write_gguf(tmp_path / "x.gguf"))
    write_folder(file, tmp_path / "one")
    write_folder(file, tmp_path / "many", shard_bytes=100_000)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    assert len(names) > 2 and all(re.fullmatch(rf"model-\d{{5}}-of-{len(names):05d}\.safetensors", n) for n in names)
    found = {}
    for name in names:
        part = read(tmp_path / "many" / name)
        assert sum(weight.nbytes for weight in part.values()) <= 100_000
        assert all(index["weight_map"][each] == name for each in part)
        found |= part
    whole = read(tmp_path / "one" / "model.safetensors")
    assert found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in whole)
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in whole.values())


def test_a_few_rows_are_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, sizes = GGUFFile(write_gguf(tmp_path / "x.gguf")), []
    rows = file.rows
    monkeypatch.setattr(file, "rows", lambda *a: sizes.append(rows(*a).size) or rows(*a))
    monkeypatch.setattr(folder, "PART", 24 * DIM)
    write_folder(file, tmp_path / "x")
    assert sum(sizes) == sum(weight.size for weight in weights("llama").values())
    assert max(sizes) == 24 * DIM


def test_a_folder_is_written_once(tmp_path: Path) -> None:
    file = GGUFFile(write_gguf(tmp_path / "x.gguf"))
    write_folder(file, tmp_path / "x")
    with pytest.raises(ValueError, match="exists"):
        write_folder(file, tmp_path / "x", "bfloat16")
    assert read_json(tmp_path / "x" / "config.json")["torch_dtype"] == "float32"


def test_a_permuted_bias_would_be_put_back() -> None:
    """Rows of a vector are those of a matrix with one column."""
    from hybrid.checkpoints.gguf.families import Target

    rows = np.arange(HEADS * 16)
    assert (Target("", (64,), "", heads=16).ordered(permuted(rows, HEADS)) == rows).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture, scaled", [("llama", False), ("llama", True), ("qwen2", False), ("qwen3", False)]
)
def test_transformers_reads_the_same_model(architecture: str, scaled: bool, tmp_path: Path) -> None:
    """Its own reader of GGUF gives the weights of the folder, which its classes take as a model."""
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    given = weights(architecture, tied=False)
    factors = {"rope_freqs.weight": llama3_factors()} if scaled else {}
    metadata = {"llama.rope.freq_base": 500000.0} if scaled else {}
    path = write_gguf(tmp_path / "x.gguf", architecture, given, "Q8_0", metadata, factors)
    write_folder(GGUFFile(path), tmp_path / "x")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "x", dtype=torch.float32).eval()
    theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    ours = model.state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in ours)
    if scaled:
        plain = 500000.0 ** -(torch.arange(0, 16, 2) / 16)
        torch.testing.assert_close(model.model.rotary_emb.inv_freq, plain / torch.tensor(llama3_factors()))


def llama3_factors(factor: float = 8.0) -> np.ndarray:
    """By how much a frequency of Llama 3.1 is divided, as llama.cpp stores it; a loop over its definition."""
    factors = []
    for i in range(0, 16, 2):
        wave = 2 * np.pi * 500000.0 ** (i / 16)
        if wave < 8192 / 4:
            factors.append(1.0)
        elif wave > 8192:
            factors.append(factor)
        else:
            smooth = (8192 / wave - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def test_the_scaling_of_llama_3_is_found_in_its_factors(tmp_path: Path) -> None:
    factors = {"rope_freqs.weight": llama3_factors()}
    path = write_gguf(tmp_path / "x.gguf", metadata={"llama.rope.freq_base": 500000.0}, tensors=factors)
    write_folder(GGUFFile(path), tmp_path / "x")
    assert read_json(tmp_path / "x" / "config.json")["rope_scaling"] == {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
