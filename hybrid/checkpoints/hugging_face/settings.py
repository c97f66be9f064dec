"""What the families here share in a config.json, as transformers 4 and 5 write it, in our words.

A decoder of RMSNorm, rotary positions, grouped queries and a gated MLP. `writing.py` says it the other way.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybrid.checkpoints.hugging_face.rope import rope_settings
from hybrid.checkpoints.hugging_face.their_config import TheirConfig
from hybrid.data.tokenizers.published import configured_ids
from hybrid.options import at_most, shown

MOST_LAYERS = 4096
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def refuse_foreign_parts(theirs: TheirConfig) -> None:
    """Raise a ValueError for what no family here has: quantised weights, experts, windows, other activations."""
    if quantised := theirs.values.get("quantization_config"):
        how = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
        raise ValueError(
            f"{theirs.where}: quantization_config {shown(how or quantised)} is not covered: weights are read as "
            "float32, bfloat16 or float16; take the model as it was before it was quantised"
        )
    for key in _EXPERTS:
        theirs.refuse(key, (0, 1), "no mixture of experts; a layer has one MLP")
    theirs.refuse("hidden_act", ("silu", "swish"), "the gate of the MLP is silu")
    theirs.refuse(
        "use_sliding_window", (False,),
        "every token sees all before it; set it to false if no text is longer than the window",
    )  # fmt: skip
    if other := sorted(set(theirs.get("layer_types", list[str], [])) - {"full_attention"}):
        raise ValueError(f"{theirs.where}: layer_types {', '.join(other)}: not covered; every layer is full_attention")
    theirs.refuse("partial_rotary_factor", (1,), "the whole of a head is rotated")


def block_settings(theirs: TheirConfig, kv_heads: int | None = None, seq_len: int = 2048) -> dict[str, Any]:
    """Return sizes, norms and positions, by our keys.

    Args:
        kv_heads: what transformers takes where num_key_value_heads is left out; None: as many as there are heads.
        seq_len: the same of max_position_embeddings.
    """
    heads, layers = theirs.size("num_attention_heads"), theirs.size("num_hidden_layers")
    at_most(f"{theirs.where}: num_hidden_layers", layers, MOST_LAYERS)
    return {
        "model.dim": theirs.size("hidden_size"),
        "model.n_layers": layers,
        "model.n_heads": heads,
        "model.n_kv_heads": _kv_heads(theirs, heads, kv_heads),
        "model.head_dim": theirs.get("head_dim", int),
        "model.hidden_dim": theirs.size("intermediate_size"),
        "model.norm_eps": theirs.get("rms_norm_eps", float, 1e-6),
        "model.tied_embeddings": theirs.get("tie_word_embeddings", bool, False),
        "model.vocab_size": theirs.size("vocab_size"),
        "data.seq_len": theirs.size("max_position_embeddings", seq_len),
        **rope_settings(theirs),
    }


def _kv_heads(theirs: TheirConfig, heads: int, left_out: int | None) -> int:
    key = "num_key_value_heads"
    default = heads if left_out is None or key in theirs.values else left_out  # null is as many as there are heads
    return theirs.size(key, None if heads % default else default)


def end_ids(folder: Path) -> dict[str, Any]:
    """Return the tokens that end a text besides the first, which is the tokenizer's end of text."""
    return {"model.end_token_ids": configured_ids(folder, "eos_token_id")[1:] or None}


def autoregressive(folder: Path) -> dict[str, Any]:
    """Return what a causal language model is, by our keys: block size 1, a begin token before the text."""
    return {
        "model.context": "causal",
        "model.begin_token_id": next(iter(configured_ids(folder, "bos_token_id")), None),
        "objective.block_size": 1,
        **end_ids(folder),
    }
