"""Small models and texts that several tests share."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from hybrid.experiments.reverse_process.ancestral_law import spend_draws
from hybrid.likelihoods import LIKELIHOODS, Likelihood, Rows
from hybrid.model import ModelConfig, Transformer
from hybrid.model.attention import SDPA
from hybrid.options import build

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


def latent_model(*mode: str, latent: int = 3, scale: float = 1.0, **options) -> Transformer:
    """A toy model whose weights of random numbers in MASK are not zero any more."""
    model = toy_model(*mode, latent=latent, **options)
    drawn = torch.randn(16, latent, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert model.latent_weight is not None
    with torch.no_grad():
        model.latent_weight.copy_(scale * drawn)
    return model


def random_tokens(*shape: int, vocab: int = 7, seed: int = 0) -> Tensor:
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(seed))


def nll_of(
    model: Transformer, tokens: Tensor, block_size: int, method="bound", draws: int | str = 1, seed: int = 0,
    documents: Tensor | None = None, is_target: Tensor | None = None, keys: Tensor | None = None,
) -> Likelihood:  # fmt: skip
    """The likelihood of rows under a network alone; `method` as `lm.nll` takes it."""
    rows = Rows.of(tokens, is_target, documents, keys)
    return build(LIKELIHOODS, method, "method").nll(model, rows, block_size, draws, seed)
