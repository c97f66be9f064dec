"""A network from its options: on which device, sharded over which ranks, with which attention backend."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hybrid.model.attention import select_backend
from hybrid.model.config import ModelConfig
from hybrid.model.memory import check_weights
from hybrid.model.transformer import Transformer


def build_model(
    config: ModelConfig, vocab_size: int, end_of_text: int, device: torch.device, *, seed: int | None = None,
    copies: int = 1, shard: Callable[[Transformer], None] | None = None, ranks: int = 1,
) -> Transformer:  # fmt: skip
    """Build a model on `device`, for training or for inference.

    Args:
        seed: of the initial weights, and the model is to be trained; None: it has no values yet, and is not.
        copies: float32 numbers that training keeps for each weight, the weight included.
        shard: is given the model before it has any storage, to shard it over ranks.
        ranks: their number.

    Raises:
        ValueError: the device cannot hold it.
    """
    if device.type != "meta":
        check_weights(config, vocab_size, device, copies, 1 if shard is None else ranks)
    # On meta only where it must be: what is made there costs the import of torch's compiler, a second.
    with torch.device(device if shard is None else "meta"):
        model = Transformer(config, vocab_size, end_of_text, initialise=False)
    if device.type != "meta":
        if shard is not None:
            shard(model)
            model.to_empty(device=device)
        if seed is not None:
            torch.manual_seed(seed)
            model.reset_parameters()
        model.attend = select_backend(config.attention, device, seed is not None)
    return model
