"""A network from a configuration: on which device, spread over which ranks, with which attention backend."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hybrid.config import Config
from hybrid.memory import check_weights
from hybrid.model import Transformer
from hybrid.model.attention import select_backend
from hybrid.tokenizer import Tokenizer


def build_model(
    config: Config, tokenizer: Tokenizer, device: torch.device, training: bool,
    spread: Callable[[Transformer], None] | None = None, ranks: int = 1,
) -> Transformer:  # fmt: skip
    """A model on `device`: freshly initialised as a function of `run.seed`, or (not `training`) without values yet.

    Args:
        spread: is given the model before it has any storage, to spread it over ranks.
        ranks: their number.

    Raises:
        ValueError: the device cannot hold it.
    """
    if device.type != "meta":
        # With the gradient, and a moment or two.
        kept = (4 if config.optim.name == "adamw" else 3) + bool(config.optim.ema_decay) if training else 1
        check_weights(config.model, tokenizer.vocab_size, device, kept, 1 if spread is None else ranks)
    # On meta only where it must be: what is made there costs the import of torch's compiler, a second.
    with torch.device(device if spread is None else "meta"):
        model = Transformer(config.model, tokenizer.vocab_size, tokenizer.end_of_text, initialise=False)
    if device.type != "meta":
        if spread is not None:
            spread(model)
            model.to_empty(device=device)
        if training:
            torch.manual_seed(config.run.seed)
            model.reset_parameters()
        model.attend = select_backend(config.model.attention, device, training)
    return model
