"""Tiny GGUF files, written as llama.cpp writes them: its names, its order of the rows of q and k, its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed (pip install '.[real]')")

LAYERS, DIM, HIDDEN, HEADS, KV_HEADS = 2, 64, 96, 4, 2
NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def byte_letters() -> list[str]:
    """The 256 letters by which byte-level BPE writes bytes, in the order of the bytes."""
    from hybrid.data.tokenizers.subword import BYTE_OF

    return [letter for letter, _ in sorted(BYTE_OF.items(), key=lambda pair: pair[1])]


def tokens() -> list[str]:
    return [*CONTROLS, *byte_letters(), "th", "the", "Ġthe", "12", "<tool>", "[PAD264]"]


TYPES = [3, 3, 3, *[1] * 260, 4, 5]
MERGES = ["t h", "th e", "Ġ the", "1 2"]
N_IDS = len(TYPES)


def head_dim(architecture: str) -> int:
    return 32 if architecture == "qwen3" else DIM // HEADS


def weights(architecture: str, tied: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights by the names of Hugging Face."""
    rng = np.random.default_rng(seed)
    q, kv = HEADS * head_dim(architecture), KV_HEADS * head_dim(architecture)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (N_IDS, DIM)}
    for layer in range(LAYERS):
        of_layer: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (DIM,),
            "post_attention_layernorm.weight": (DIM,),
        }
        of_layer |= {"self_attn.q_proj.weight": (q, DIM), "self_attn.k_proj.weight": (kv, DIM)}
        of_layer |= {"self_attn.v_proj.weight": (kv, DIM), "self_attn.o_proj.weight": (DIM, q)}
        of_layer |= {"mlp.gate_proj.weight": (HIDDEN, DIM), "mlp.up_proj.weight": (HIDDEN, DIM)}
        of_layer |= {"mlp.down_proj.weight": (DIM, HIDDEN)}
        if architecture == "qwen2":
            of_layer |= {f"self_attn.{each}_proj.bias": (width,) for each, width in (("q", q), ("k", kv), ("v", kv))}
        if architecture == "qwen3":
            of_layer |= {f"self_attn.{each}_norm.weight": (head_dim(architecture),) for each in ("q", "k")}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in of_layer.items()}
    shapes["model.norm.weight"] = (DIM,)
    if not tied:
        shapes["lm_head.weight"] = (N_IDS, DIM)
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def name_of_llama_cpp(name: str) -> str:
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}  # fmt: skip
    if name in whole:
        return whole[name]
    _, _, layer, rest = name.split(".", 3)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{next(short for short, long in NAMES.items() if long == part)}.{kind}"


def permuted(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """The order of the rows of q and k in a llama file: row i of each half of a head, one after the other."""
    return rows.reshape(n_heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(
    path: Path,
    architecture: str = "llama",
    of: dict[str, np.ndarray] | None = None,
    kind: str = "F32",
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray | None] | None = None,
) -> Path:
    """Write a file.

    Args:
        of: weights by the names of Hugging Face.
        kind: the type in which the matrices are stored.
        metadata: values over those of a good file; None leaves one out.
        tensors: the same for tensors, by the names of llama.cpp, as they are stored.
    """
    writer = gguf.GGUFWriter(path, architecture)
    values = {**_metadata(architecture), **(metadata or {})}
    for key, value in values.items():
        if value is not None and key != "general.architecture":
            _add(writer, key, value)
    stored: dict[str, np.ndarray | None] = {}
    for name, weight in (of or weights(architecture)).items():
        if architecture == "llama" and (".q_proj" in name or ".k_proj" in name):
            weight = permuted(weight, HEADS if ".q_proj" in name else KV_HEADS)
        stored[name_of_llama_cpp(name)] = weight
    for name, weight in (stored | (tensors or {})).items():
        if weight is not None:
            of_kind = gguf.GGMLQuantizationType[kind if weight.ndim == 2 else "F32"]
            writer.add_tensor(name, gguf.quants.quantize(weight, of_kind), raw_dtype=of_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _metadata(architecture: str) -> dict[str, Any]:
    sizes = {
        "block_count": LAYERS, "context_length": 128, "embedding_length": DIM, "feed_forward_length": HIDDEN,
        "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 10000.0,
    }  # fmt: skip
    if architecture == "qwen3":
        sizes |= {"attention.key_length": 32, "attention.value_length": 32}
    tokenizer = {
        "model": "gpt2", "pre": "smollm" if architecture == "llama" else "qwen2", "tokens": tokens(),
        "token_type": TYPES, "merges": MERGES, "bos_token_id": 1, "eos_token_id": 2, "padding_token_id": 0,
        "add_bos_token": False,
    }  # fmt: skip
    return {
        **{f"{architecture}.{key}": value for key, value in sizes.items()},
        **{f"tokenizer.ggml.{key}": value for key, value in tokenizer.items()},
        "tokenizer.chat_template": TEMPLATE,
    }


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, Sequence) and not isinstance(value, str):
        writer.add_array(key, value)
        return
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add[type(value)](key, value)
