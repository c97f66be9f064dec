"""The training pass: whole rows, a clean stream and noisy ones. Which row predicts which token is decided here.

`block_pass.py` is the other way to run the network, block by block over a cache; both must agree.

Shape legend: b batch, N text length, D noise draws, m masked tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid.device import send
from hybrid.model.config import ModelConfig
from hybrid.model.masks import TwoStream
from hybrid.model.transformer import Transformer


def two_stream_hidden(
    model: Transformer, tokens: Tensor, masked: Tensor, block_size: int, documents: Tensor | None = None,
    autoregressive: Tensor | None = None, *, canvas: Tensor | None = None, latent: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Compute the hidden states from which the masked tokens are predicted, in one pass.

    The arguments may all be on the host, wherever the model is. How many tokens are masked is counted where the masks
    are; on the host, nobody waits for a GPU to know it.

    Args:
        tokens: (b, N) clean ids.
        masked: (b, D, N) booleans; each noise draw is its own noisy stream, and all share the clean one.
        documents: (b, N), the number of end-of-text tokens before each token, or None for one document.
        autoregressive: (b, N) booleans, tokens also to be predicted from those before them (`context: causal`).
        canvas: (b, D, N) ids of the noisy streams, on the host or on the device, MASK where `masked` is true; None:
            those of `tokens`. So a noisy block may hold tokens that a model has written.
        latent: (b, D, N, model.latent) random numbers of each noisy stream, of which masked tokens have a part
            (`latent_noise`); None: they are 0.

    Returns:
        (m, dim), in the order of `masked.nonzero()`, followed by the rows of `autoregressive.nonzero()`.
    """
    device, documents = model.device, input_documents(model, tokens, documents)
    pattern = TwoStream.of(
        tokens.shape[1],
        block_size,
        model.config.context,
        model.config.prediction,
        draws=masked.shape[1],
        documents=None if documents is None else send(documents, device),
        autoregressive=autoregressive is not None,
        device=device,
    )
    rows = pattern.rows
    clean = with_begin(model, tokens)[:, : rows.n_clean]
    noisy = torch.where(masked, model.mask_token_id, tokens[:, None]) if canvas is None else canvas
    noisy = noisy.flatten(1)
    read = rows.read_masked(masked)
    if autoregressive is not None:
        noisy = torch.cat([noisy, noisy.new_full((len(tokens), 1), model.mask_token_id)], dim=1)
        is_first = first_tokens(tokens, None if documents is None else documents[:, rows.begin :])
        read = torch.cat([read, rows.read_autoregressive(autoregressive, is_first)])
    streams = [clean, noisy[:, : rows.n_noisy]]
    if canvas is not None:
        streams = [send(stream, device) for stream in streams]
    inputs = torch.cat(streams, dim=1)
    z = None
    if latent is not None and rows.n_noisy:  # `next_token` at block size 1 reads no MASK
        of_masks = (latent * masked[..., None]).flatten(1, 2).to(model.embedding.weight.dtype)
        behind = inputs.shape[1] - rows.n_clean - of_masks.shape[1]  # the row of `autoregressive`
        z = send(F.pad(of_masks, (0, 0, rows.n_clean, behind)), device)
    return model(send(inputs, device), pattern, read=send(read, device), latent=z)


def with_begin(model: Transformer, tokens: Tensor) -> Tensor:
    """Put the begin token before the text of `next_token` models."""
    if not model.config.begin:
        return tokens
    return F.pad(tokens, (1, 0), value=model.begin_token_id)


def input_documents(model: Transformer, tokens: Tensor, documents: Tensor | None) -> Tensor | None:
    """Return the document of each input row, (b, begin + N).

    An end-of-text token ends its document as something to predict. As an input of a `next_token` model it opens the
    next one, whose first token is read off it.
    """
    if documents is None or not model.config.begin:
        return documents
    opening = documents + (tokens == model.end_of_text).to(documents.dtype)
    return torch.cat([documents[:, :1], opening], dim=1)


def first_tokens(tokens: Tensor, documents: Tensor | None) -> Tensor:
    """Find the tokens (b, N) before which there is nothing: the first of a text, and of each of its documents."""
    is_first = torch.zeros_like(tokens, dtype=torch.bool)
    is_first[:, 0] = True
    if documents is not None:
        is_first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return is_first


def reads_causally(config: ModelConfig) -> bool:
    """Return whether a clean row can predict the token behind it from those up to itself.

    Rows of a `next_token` model can, read as at block size 1, whatever its context.
    """
    return bool(config.begin) or config.context == "causal"


def check_reads_causally(config: ModelConfig, who: str) -> None:
    """Raise a ValueError if no clean row can predict the token behind it from those up to itself."""
    if not reads_causally(config):
        raise ValueError(
            f"{who} needs a network of prediction=next_token, or an in_place one of context=causal; the clean rows of "
            f"this one ({config.context}) see the tokens that they would predict"
        )
