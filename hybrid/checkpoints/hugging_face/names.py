"""Names and shapes of the weights, ours and theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hybrid.model.config import ModelConfig


@dataclass(frozen=True)
class Names:
    """Their names of our weights.

    Attributes:
        outer: of what stands outside of the layers, whole.
        layers: what precedes the number of a layer.
        parts: of the parts of a layer, without `.weight` and `.bias`.
    """

    outer: Mapping[str, str]
    layers: str
    parts: Mapping[str, str]

    def theirs(self, ours: str) -> str:
        """Translate `layers.3.wq.weight` to `model.layers.3.self_attn.q_proj.weight`."""
        if ours in self.outer:
            return self.outer[ours]
        _, number, part, kind = ours.split(".")
        return f"{self.layers}.{number}.{self.parts[part]}.{kind}"


LLAMA_NAMES = Names(
    outer={
        "embedding.weight": "model.embed_tokens.weight",
        "final_norm.weight": "model.norm.weight",
        "head_weight": "lm_head.weight",
    },
    layers="model.layers",
    parts={
        "attention_norm": "input_layernorm",
        "wq": "self_attn.q_proj",
        "wk": "self_attn.k_proj",
        "wv": "self_attn.v_proj",
        "wo": "self_attn.o_proj",
        "q_norm": "self_attn.q_norm",
        "k_norm": "self_attn.k_norm",
        "mlp_norm": "post_attention_layernorm",
        "w_gate": "mlp.gate_proj",
        "w_up": "mlp.up_proj",
        "w_down": "mlp.down_proj",
    },
)
"""Those of Llama, which most have taken over."""


def shapes_of(model: ModelConfig, rows: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight by our name, as a file has it: embedding and head of `rows` rows."""
    width, kv_width = model.n_heads * model.head_width, model.kv_heads * model.head_width
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (rows, model.dim)}
    for number in range(model.n_layers):
        linear = {
            "wq": (width, model.dim), "wk": (kv_width, model.dim), "wv": (kv_width, model.dim),
            "wo": (model.dim, width), "w_gate": (model.mlp_dim, model.dim), "w_up": (model.mlp_dim, model.dim),
            "w_down": (model.dim, model.mlp_dim),
        }  # fmt: skip
        norms = {"attention_norm": model.dim, "mlp_norm": model.dim}
        norms |= {"q_norm": model.head_width, "k_norm": model.head_width} if model.qk_norm else {}
        biased = ("wq", "wk", "wv") * model.qkv_bias + ("w_gate", "w_up", "w_down") * model.mlp_bias
        layer: dict[str, tuple[int, ...]] = {f"{part}.weight": shape for part, shape in linear.items()}
        layer |= {f"{part}.bias": linear[part][:1] for part in biased}
        layer |= {f"{part}.weight": (size,) for part, size in norms.items()}
        shapes |= {f"layers.{number}.{name}": shape for name, shape in layer.items()}
    shapes["final_norm.weight"] = (model.dim,)
    return shapes if model.tied_embeddings else shapes | {"head_weight": (rows, model.dim)}
