"""Folders that cannot be read as they are meant: one line that names what is wrong, and what is covered."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hugging_face_folders import CONFIGS, LLAMA3, write_folder
from safetensors.torch import load_file, save_file

import hybrid
from hybrid.checkpoints import IMPORTERS


def message_of(folder: Path) -> str:
    """The error of loading a folder: one line, which begins with the folder and is short enough to read."""
    with pytest.raises(ValueError) as caught:
        hybrid.load(folder)
    message = str(caught.value)
    assert message.startswith(str(folder)) and "\n" not in message and len(message) < 700 + len(str(folder)), message
    return message


@pytest.mark.parametrize("name, changes, expected", [
    ("llama", {"model_type": "gpt2"}, "model_type 'gpt2' (LayerNorm, learned positions and GELU): not covered"),
    ("llama", {"model_type": "gpt2"}, "covered are llama (Llama 2 and 3, SmolLM2); qwen2 (Qwen2, Qwen2.5); qwen3"),
    ("qwen3", {"model_type": "qwen3_moe"}, "model_type 'qwen3_moe' (a mixture of experts): not covered"),
    ("llama", {"model_type": "mixtral"}, "(a mixture of experts): not covered"),
    ("llama", {"model_type": "llada"}, "model_type 'llada': not covered; covered are"),  # near, but another network
    ("llama", {"model_type": ["llama"]}, "model_type ['llama']: not covered"),
    ("qwen2", {"num_experts": 8}, "num_experts 8: not covered; no mixture of experts"),
    ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config 'gptq' is not covered"),
    ("llama", {"attention_bias": True}, "attention_bias True: not covered; no bias on what the attention writes"),
    ("qwen3", {"attention_bias": True}, "attention_bias True: not covered"),
    ("qwen2", {"use_sliding_window": True}, "use_sliding_window True: not covered; every token sees all before it"),
    ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types sliding_attention: not covered"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu': not covered; the gate of the MLP is silu"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5: not covered"),
    ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
     "rope_scaling: type 'dynamic': not covered; covered are default, llama3, yarn"),
    ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters: type 'longrope': not covered"),
    ("llama", {"rope_scaling": LLAMA3 | {"llama_4_scaling_beta": 0.1}}, "rope_scaling: llama_4_scaling_beta: not cov"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling: low_freq_factor is missing"),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "truncate False: not covered"),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 0.5}}, "model.rope_scaling.factor: 0.5 is too small"),
    ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
    ("llama", {"rope_scaling": [1]}, "rope_scaling: [1] is no JSON object"),
    ("llama", {"rope_theta": 0}, "rope_theta: 0.0 must be positive and finite"),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": float("nan")}}, "rope_theta: nan must be"),
    ("llama", {"rms_norm_eps": 0.0}, "model.norm_eps: 0.0 must be positive"),
    ("llama", {"hidden_size": None}, "hidden_size is missing; add it as the model was published with it"),
    ("llama", {"hidden_size": "32"}, "config.json: hidden_size: '32' is a str; it must be int"),
    ("llama", {"num_attention_heads": 0}, "num_attention_heads: 0 is too small"),
    ("llama", {"num_attention_heads": 5}, "model.n_heads: 5 does not divide model.dim 32"),
    ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000 is too large"),
    ("llama", {"num_hidden_layers": 3}, "missing model.layers.2.self_attn.q_proj.weight, "),
    ("llama", {"num_hidden_layers": 1}, "unexpected model.layers.1."),
    ("llama", {"tie_word_embeddings": True}, "lm_head.weight is another matrix than model.embed_tokens.weight"),
    ("qwen2", {"tie_word_embeddings": False}, "missing lm_head.weight"),
    ("llama", {"model_type": "qwen2"}, "missing model.layers.0.self_attn.q_proj.bias, "),
    ("qwen2", {"model_type": "llama"}, "unexpected model.layers.0.self_attn.k_proj.bias"),
    ("qwen3", {"head_dim": None}, "model.layers.0.self_attn.q_proj.weight [48, 32] instead of [512, 32]"),
    ("llama", {"vocab_size": 301}, "of another shape model.embed_tokens.weight [300, 32] instead of [301, 32]"),
    ("llama", {"vocab_size": 200}, "bos_token_id 256 is outside of the vocabulary, 0 to 199"),
    ("llama", {"eos_token_id": 299}, "tokenizer.json: end of text: 299 is none of the tokenizer's ids, 0 to 258"),
    ("llama", {"eos_token_id": [257, 300]}, "eos_token_id 300 is outside of the vocabulary"),
    ("llama", {"eos_token_id": "</s>"}, "config.json: eos_token_id: '</s>' is a str; it must be int or list of int"),
    ("sdar", {"mask_token_id": None}, "mask_token_id is missing"),
    ("sdar", {"block_size": None}, "block_size is missing"),
    ("sdar", {"mask_token_id": 300}, "mask_token_id 300 is outside of the vocabulary"),
    ("sdar", {"block_size": 0}, "block_size: 0 is too small"),
])  # fmt: skip
def test_a_config_that_is_not_covered(name: str, changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", name)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    assert expected in message_of(folder)


def index_of(folder: Path, change: Callable[[dict[str, str]], None] = lambda weight_map: None) -> Path:
    """Make two shards and an index of a folder, the index changed."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {f"model-0000{i + 1}-of-00002.safetensors": sorted(tensors)[i::2] for i in range(2)}
    for file, some in names.items():
        save_file({name: tensors[name] for name in some}, folder / file)
    weight_map = {name: file for file, some in names.items() for name in some}
    change(weight_map)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def into(path: str) -> Callable[[dict[str, str]], None]:
    return lambda weight_map: weight_map.update({"lm_head.weight": path})


def _link_out(folder: Path) -> None:
    outside = folder.parent / "elsewhere.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _int8(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.norm.weight": torch.ones(32, dtype=torch.int8)}, folder / "model.safetensors")


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 538090408\n"
FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a path up": (lambda f: index_of(f, into("../x.safetensors")), "'../x.safetensors' leads out of the folder"),
    "an absolute path": (lambda f: index_of(f, into("/etc/passwd")), "'/etc/passwd' leads out of the folder"),
    "a folder below": (lambda f: index_of(f, into("a/b.safetensors")), "'a/b.safetensors' leads out of the folder"),
    "a link": (_link_out, "model.safetensors: is a link out of the folder; put the file itself there"),
    "a shard is gone": (lambda f: (index_of(f) / "model-00002-of-00002.safetensors").unlink(), "are missing: model-0"),
    "not in its shard": (lambda f: index_of(f, lambda m: m.update({"odd": m["lm_head.weight"]})), "does not hold"),
    "not in the index": (lambda f: index_of(f, lambda m: m.pop("lm_head.weight")), "does not hold what it lists: lm_"),
    "an index of numbers": (lambda f: index_of(f, into(3)), "does not name a file for each tensor"),  # type: ignore
    "pickled": (_pickled, "write them as safetensors with transformers: AutoModelForCausalLM"),
    "git-lfs": (lambda f: (f / "model.safetensors").write_text(POINTER), "a pointer of git-lfs: git lfs pull"),
    "git-lfs, tokenizer": (lambda f: (f / "tokenizer.json").write_text(POINTER), "a pointer of git-lfs: git lfs pull"),
    "an empty tokenizer": (lambda f: (f / "tokenizer.json").write_text(""), "; copy or download the file again"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "int8": (_int8, "quantised, or no weights: model.norm.weight I8; covered are F64, F32, BF16, F16"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing; write it with"),
    "an odd tokenizer": (lambda f: (f / "tokenizer.json").write_text("[]"), "is not a tokenizer.json that the"),
    "no config": (lambda f: (f / "config.json").write_text("{"), "config.json: is not valid JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "holds [] instead of a JSON object"),
    "odd generation": (lambda f: (f / "generation_config.json").write_text("{"), "generation_config.json: is not"),
}  # fmt: skip


@pytest.mark.parametrize("what", FILES)
def test_files_that_are_damaged_or_lead_elsewhere(what: str, tmp_path: Path) -> None:
    damage, expected = FILES[what]
    folder = write_folder(tmp_path / "m", "llama")
    damage(folder)
    assert expected in message_of(folder)


@pytest.mark.thin(2)
@pytest.mark.parametrize("ten", range(10))
def test_a_hundred_damaged_folders_are_refused_in_a_line_each(ten: int, tmp_path: Path) -> None:
    """Whatever is cut, swapped, renamed, retyped or taken from another model: never a traceback, never a model."""
    whole = {name: write_folder(tmp_path / "whole" / name, name) for name in CONFIGS}
    for number in range(10 * ten, 10 * ten + 10):
        rng = random.Random(number)
        name = rng.choice(list(whole))
        folder = tmp_path / f"damaged-{number}"
        shutil.copytree(whole[name], folder)
        if rng.random() < 0.3:
            index_of(folder)
        damage = rng.choice(DAMAGES)
        damage(folder, rng, whole[rng.choice([other for other in whole if other != name])])
        try:
            message_of(folder)
        except BaseException:
            print(f"case {number}: {damage.__name__} of {name}")
            raise
        shutil.rmtree(folder)


def _cut(folder: Path, rng: random.Random, other: Path) -> None:
    file = rng.choice(sorted(folder.glob("*.safetensors")))
    file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])


def _noise(folder: Path, rng: random.Random, other: Path) -> None:
    file = rng.choice(sorted(folder.iterdir()))
    file.write_bytes(rng.randbytes(200))


def _gone(folder: Path, rng: random.Random, other: Path) -> None:
    rng.choice([file for file in folder.iterdir() if file.name != "config.json"]).unlink()


def _config_of_another(folder: Path, rng: random.Random, other: Path) -> None:
    shutil.copy(other / "config.json", folder)


def _weights(change: Callable[[dict[str, torch.Tensor], random.Random], None]) -> Callable[..., None]:
    def damage(folder: Path, rng: random.Random, other: Path) -> None:
        file = rng.choice(sorted(folder.glob("*.safetensors")))
        tensors = load_file(file)
        change(tensors, rng)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)

    damage.__name__ = change.__name__
    return damage


@_weights
def _swapped(tensors: dict[str, torch.Tensor], rng: random.Random) -> None:
    """Two of different shapes under each other's names."""
    one = rng.choice(sorted(tensors))
    two = rng.choice(sorted(name for name in tensors if tensors[name].shape != tensors[one].shape))
    tensors[one], tensors[two] = tensors[two], tensors[one]


@_weights
def _renamed(tensors: dict[str, torch.Tensor], rng: random.Random) -> None:
    name = rng.choice(sorted(tensors))
    tensors[rng.choice((f"{name}x", name.replace("model", "net"), "transformer.wte.weight"))] = tensors.pop(name)


@_weights
def _reshaped(tensors: dict[str, torch.Tensor], rng: random.Random) -> None:
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    forms = (tensor[:-1], tensor[None], tensor.flatten()[:3], torch.cat([tensor, tensor]))
    tensors[name] = rng.choice(forms).clone()


@_weights
def _not_finite(tensors: dict[str, torch.Tensor], rng: random.Random) -> None:
    name = rng.choice(sorted(tensors))
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[rng.randrange(tensors[name].numel())] = rng.choice((float("nan"), float("inf")))


@_weights
def _of_another_kind(tensors: dict[str, torch.Tensor], rng: random.Random) -> None:
    name = rng.choice(sorted(tensors))
    tensors[name] = tensors[name].to(rng.choice((torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn)))


def _retyped(folder: Path, rng: random.Random, other: Path) -> None:
    """A size that is another number, or no number."""
    config = json.loads((folder / "config.json").read_text())
    key = rng.choice(("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"))
    config[key] = rng.choice((None, "7", 7.5, True, [], {}, -1, 0, 10**30, config[key] + 8))
    (folder / "config.json").write_text(json.dumps(config))


def _elsewhere(folder: Path, rng: random.Random, other: Path) -> None:
    """A shard, or the only file, that lies outside."""
    if (folder / "model.safetensors").exists():
        index_of(folder)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    paths = ("../whole/llama/model.safetensors", str(other / "model.safetensors"), "..", ".", "", "\0", "a\\b")
    content["weight_map"][rng.choice(sorted(content["weight_map"]))] = rng.choice(paths)
    index.write_text(json.dumps(content))


DAMAGES: list[Callable[..., None]] = [
    _cut, _noise, _gone, _config_of_another, _swapped, _renamed, _reshaped, _not_finite, _of_another_kind, _retyped,
    _elsewhere,
]  # fmt: skip


def test_an_importer_of_ones_own_comes_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is keyed by model_type: an entry of the same name takes the place of ours."""

    class Mine:
        def recognises(self, folder: Path) -> bool:
            return True

        def read(self, folder: Path) -> Any:
            raise ValueError("mine")

    monkeypatch.setitem(IMPORTERS, "llama", Mine)
    assert message_of(write_folder(tmp_path / "m", "llama")).endswith(": mine")
