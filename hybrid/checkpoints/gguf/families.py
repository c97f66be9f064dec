"""Architectures of llama.cpp: their settings and tensors in the words of Hugging Face.

To add one: an entry in `FAMILIES`, and what it alone needs in `config_of` and `targets_of`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybrid.checkpoints.gguf.reading import GGUFFile
from hybrid.options import bare

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What all models with the scaled rotary embedding of Llama 3.1 have; the file holds only what follows from it."""
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Family:
    """What tells an architecture from the others.

    Attributes:
        class_name: of the model in transformers.
        is_permuted: llama.cpp stores the rows of q and k so that those that are rotated together lie side by side.
    """

    class_name: str
    has_qkv_bias: bool = False
    has_qk_norm: bool = False
    is_permuted: bool = False


FAMILIES = {
    "llama": Family("LlamaForCausalLM", is_permuted=True),
    "qwen2": Family("Qwen2ForCausalLM", has_qkv_bias=True),
    "qwen3": Family("Qwen3ForCausalLM", has_qk_norm=True),
}


@dataclass(frozen=True)
class Target:
    """A tensor as it is written.

    Attributes:
        source: its name in the GGUF file.
        heads: 0, or the width of a head whose rows are to be put back into order.
    """

    name: str
    shape: tuple[int, ...]
    source: str
    heads: int = 0

    def ordered(self, rows: np.ndarray) -> np.ndarray:
        """Put rows of whole heads back: llama.cpp has row i of the first half of a head and row i of the second
        one after the other.
        """
        if not self.heads:
            return rows
        pairs = rows.reshape(-1, self.heads // 2, 2, *rows.shape[1:])
        return np.swapaxes(pairs, 1, 2).reshape(rows.shape)


def family_of(file: GGUFFile) -> tuple[str, Family]:
    """Return the architecture of a file and what it is.

    Raises:
        ValueError: it is not covered, or a mixture of experts.
    """
    name = file.get("general.architecture", str)
    if name not in FAMILIES:
        raise ValueError(f"{file.path}: its architecture {bare(name)} is not covered; {', '.join(FAMILIES)} are")
    if file.get(f"{name}.expert_count", int, 0):
        raise ValueError(f"{file.path}: is a mixture of experts, which is not covered; dense models are")
    return name, FAMILIES[name]


def config_of(file: GGUFFile) -> dict[str, Any]:
    """Return the settings of a model, as its config.json has them; without the ids of tokens.

    Raises:
        ValueError: the architecture is not covered, or a setting of it, or one is absent.
    """
    name, family = family_of(file)

    def get(key: str, kind: type, *default: Any) -> Any:
        return file.get(f"{name}.{key}", kind, *default)

    def positive(key: str, *default: int) -> int:
        if (value := get(key, int, *default)) < 1:
            raise ValueError(f"{file.path}: {name}.{key} is {value}; it must be at least 1")
        return value

    dim, n_heads, length = positive("embedding_length"), positive("attention.head_count"), positive("context_length")
    head_dim = positive("attention.key_length", max(dim // n_heads, 1))
    if head_dim % 2:
        raise ValueError(f"{file.path}: a head is {head_dim} wide; rotary positions need an even width")
    for key in ("rope.dimension_count", "attention.value_length"):
        if get(key, int, head_dim) != head_dim:
            raise ValueError(f"{file.path}: {name}.{key} is not the width of a head, {head_dim}; that is not covered")
    if 0 < get("attention.sliding_window", int, 0) < length:
        raise ValueError(f"{file.path}: {name}.attention.sliding_window: a sliding window is not covered")
    theta = get("rope.freq_base", float, 10000.0)
    n_layers = positive("block_count")
    if n_layers > len(file.shapes):
        raise ValueError(f"{file.path}: {name}.block_count is {n_layers}, and there are {len(file.shapes)} tensors")
    biases = {"attention_bias": False, "mlp_bias": False} if name == "llama" else {}
    return {
        "architectures": [family.class_name], "model_type": name,
        "hidden_size": dim, "num_hidden_layers": n_layers,
        "intermediate_size": positive("feed_forward_length"),
        "num_attention_heads": n_heads, "num_key_value_heads": positive("attention.head_count_kv", n_heads),
        "head_dim": head_dim, "vocab_size": _rows_of(file, "token_embd.weight"), "max_position_embeddings": length,
        "hidden_act": "silu", "rms_norm_eps": get("attention.layer_norm_rms_epsilon", float),
        "rope_theta": theta, "rope_scaling": _rope_scaling(file, name, theta, head_dim), **biases,
        "attention_dropout": 0.0, "tie_word_embeddings": "output.weight" not in file.shapes, "use_cache": True,
    }  # fmt: skip


def _rows_of(file: GGUFFile, name: str) -> int:
    if len(file.shapes.get(name, ())) != 2:
        raise ValueError(f"{file.path}: has no matrix {name}")
    return file.shapes[name][0]


def _rope_scaling(file: GGUFFile, name: str, theta: float, head_dim: int) -> dict[str, Any] | None:
    """Return the settings of which the factors in the file follow; None if there are none."""
    kind = file.get(f"{name}.rope.scaling.type", str, "none")
    if kind != "none":
        raise ValueError(f"{file.path}: {name}.rope.scaling.type {bare(kind)} is not covered; that of Llama 3.1 is")
    if ROPE_FACTORS not in file.shapes:
        return None
    found = file.rows(ROPE_FACTORS, 0, head_dim // 2)
    settings = {"rope_type": "llama3", "factor": round(float(found.max()), 4), **LLAMA3}
    waves = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    smooth = np.clip((settings["original_max_position_embeddings"] / waves - low) / (high - low), 0, 1)
    factors = 1 / ((1 - smooth) / settings["factor"] + smooth)
    if found.shape != factors.shape or not np.allclose(found, factors, rtol=1e-4):
        raise ValueError(
            f"{file.path}: the factors in {ROPE_FACTORS} are not those of Llama 3.1, which alone are covered"
        )
    return settings


def targets_of(file: GGUFFile, config: dict[str, Any]) -> list[Target]:
    """Return the tensors to write, in the order of the network.

    Raises:
        ValueError: the file lacks some, has others, or has them in another shape; each is named.
    """
    family, head = FAMILIES[config["model_type"]], config["head_dim"]
    dim, hidden = config["hidden_size"], config["intermediate_size"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    permuted = head if family.is_permuted else 0
    targets = [Target("model.embed_tokens.weight", (config["vocab_size"], dim), "token_embd.weight")]
    for layer in range(config["num_hidden_layers"]):

        def add(ours: str, theirs: str, *shape: int, heads: int = 0, n: int = layer) -> None:
            targets.append(Target(f"model.layers.{n}.{ours}", shape, f"blk.{n}.{theirs}", heads))

        _add_attention(add, family, dim, q, kv, head, permuted)
        add("post_attention_layernorm.weight", "ffn_norm.weight", dim)
        add("mlp.gate_proj.weight", "ffn_gate.weight", hidden, dim)
        add("mlp.up_proj.weight", "ffn_up.weight", hidden, dim)
        add("mlp.down_proj.weight", "ffn_down.weight", dim, hidden)
    targets.append(Target("model.norm.weight", (dim,), "output_norm.weight"))
    if not config["tie_word_embeddings"]:
        targets.append(Target("lm_head.weight", (config["vocab_size"], dim), "output.weight"))
    _refuse_differences(file, {target.source: target.shape for target in targets})
    return targets


def _add_attention(
    add: Callable[..., None], family: Family, dim: int, q: int, kv: int, head: int, permuted: int
) -> None:
    add("input_layernorm.weight", "attn_norm.weight", dim)
    for letter, width, heads in (("q", q, permuted), ("k", kv, permuted), ("v", kv, 0)):
        add(f"self_attn.{letter}_proj.weight", f"attn_{letter}.weight", width, dim, heads=heads)
        if family.has_qkv_bias:
            add(f"self_attn.{letter}_proj.bias", f"attn_{letter}.bias", width, heads=heads)
    if family.has_qk_norm:
        add("self_attn.q_norm.weight", "attn_q_norm.weight", head)
        add("self_attn.k_norm.weight", "attn_k_norm.weight", head)
    add("self_attn.o_proj.weight", "attn_output.weight", dim, q)


def _refuse_differences(file: GGUFFile, expected: dict[str, tuple[int, ...]]) -> None:
    found = {name: shape for name, shape in file.shapes.items() if name != ROPE_FACTORS}
    faults = [f"{name} is missing" for name in expected if name not in found]
    faults += [f"{bare(name)} is not expected" for name in found if name not in expected]
    faults += [
        f"{name} is {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if faults:
        more = f", and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise ValueError(f"{file.path}: its tensors are not those of its settings: {', '.join(faults[:8])}{more}")
