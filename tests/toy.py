"""Small models and texts that several tests share."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from hybrid.experiments.reverse_process.ancestral_law import spend_draws
from hybrid.model import ModelConfig, Transformer
from hybrid.model.attention import SDPA

CONTEXTS, PREDICTIONS = ("block_causal", "causal"), ("in_place", "next_token")
MODES = list(itertools.product(CONTEXTS, PREDICTIONS))


def toy_model(
    context: str = "block_causal", prediction: str = "in_place", vocab: int = 7, dtype=torch.float64, seed: int = 0,
    **sizes,
) -> Transformer:  # fmt: skip
    """A model with weights large enough that its predictions are far from uniform; end of text is the last id."""
    options = {"dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, **sizes}
    model = Transformer(ModelConfig(context=context, prediction=prediction, **options), vocab, vocab - 1, False)
    torch.manual_seed(seed)
    spend_draws(model)
    model.reset_parameters()
    model = model.to(dtype)
    model.attend = SDPA()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in ("embedding.weight", "head_weight"):
                p.mul_(40)
    return model.eval()


def random_tokens(*shape: int, vocab: int = 7, seed: int = 0) -> Tensor:
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(seed))
