"""Small Hugging Face folders of random weights: written by hand, without transformers, or by transformers itself."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hybrid.checkpoints.hugging_face.names import LLAMA_NAMES, shapes_of
from hybrid.checkpoints.hugging_face.reading import model_of

VOCAB, DIM, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INNER = 300, 32, 2, 4, 2, 12, 48
SIZES = {
    "vocab_size": VOCAB, "hidden_size": DIM, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "intermediate_size": INNER, "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
    "bos_token_id": 256, "eos_token_id": 257, "hidden_act": "silu",
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama3": {"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": LLAMA3, "mlp_bias": True},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, "use_sliding_window": False},
    "qwen3": {"model_type": "qwen3", "head_dim": HEAD_DIM, "tie_word_embeddings": True, "rope_theta": 1e6},
    "sdar": {"model_type": "sdar", "head_dim": HEAD_DIM, "mask_token_id": 290, "block_size": 4},
}
"""By name what a config.json says besides the sizes, in the words of transformers 4."""


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json: the 256 bytes, then the tokens `<s>`, `</s>` and `<turn>`."""
    import tokenizers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(dict(zip(alphabet, range(256), strict=True)), []))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    bpe.add_special_tokens(["<s>", "</s>", "<turn>"])
    bpe.save(str(folder / "tokenizer.json"))


def write_folder(folder: Path, name: str, seed: int = 0, **changes: Any) -> Path:
    """Write one of `CONFIGS` with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = SIZES | CONFIGS[name] | changes
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    save_file(random_weights(_shapes(folder, config), seed), folder / "model.safetensors")
    return folder


def write_shards(folder: Path, dtype: torch.dtype, shards: int, name: str = "llama", **changes: Any) -> Path:
    """Write one of `CONFIGS` with weights that are all zero, which takes no time, in several files and an index."""
    write_folder(folder, name)
    config = SIZES | CONFIGS[name] | changes
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    named = sorted(_shapes(folder, config).items())
    where: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        tensors = {LLAMA_NAMES.theirs(weight): torch.zeros(shape, dtype=dtype) for weight, shape in named[i::shards]}
        save_file(tensors, folder / file)
        where |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def _shapes(folder: Path, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    from hybrid.checkpoints.hugging_face import FAMILIES
    from hybrid.checkpoints.hugging_face.their_config import TheirConfig

    settings = FAMILIES[config["model_type"]]().settings(TheirConfig.of(folder), folder)
    return shapes_of(model_of(settings), config["vocab_size"])


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Weights by their names: norms near 1, biases and matrices near 0; each depends on its name and the seed alone."""
    theirs = {LLAMA_NAMES.theirs(name): shape for name, shape in shapes.items()}
    return {name: _random_weight(name, shape, seed) for name, shape in theirs.items()}


def _random_weight(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    return torch.randn(shape, generator=draw) * (0.3 if len(shape) > 1 else 0.1) + ("norm" in name)


def transformers_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """What transformers makes of a folder; SDAR, which it does not know, as the Qwen3 that it is."""
    from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa", "local_files_only": True}
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] != "sdar":
        return AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    return Qwen3ForCausalLM.from_pretrained(
        folder, config=Qwen3Config.from_dict(config | {"model_type": "qwen3"}), **options
    ).eval()
