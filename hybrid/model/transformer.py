"""The transformer: norms, rotary positions, grouped-query attention, an MLP. No time conditioning.

It knows nothing of noise or generation. Rows, and the pattern of who attends to whom, come as arguments, perhaps with a
cache; hidden states come out. The head is apart, so that only rows that are read reach it.

Shape legend: b batch, r rows of a forward, q query rows, m rows that are read.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hybrid.distributed import full, sharded_like
from hybrid.model.attention import Backend, Eager
from hybrid.model.cache import KVCache
from hybrid.model.config import ModelConfig
from hybrid.model.layers import NORMS, Layer
from hybrid.model.masks import Pattern
from hybrid.model.rope import Rope


class Transformer(nn.Module):
    """Token ids and a pattern in, hidden states out.

    Args:
        vocab_size: ids of the tokenizer. Embedding and head have a row for each, and for more if `config.vocab_size`
            says so. MASK is one of the rows (`config.mask_token_id`), or the id behind them, which the input alone
            knows.
        end_of_text: the id that ends a document; `next_token` models begin with it, unless `config.begin_token_id` says
            with which.
        initialise: False leaves the weights without values, for a caller who has some.

    Raises:
        ValueError: sizes that do not fit each other, or ids outside of the vocabulary.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, end_of_text: int, initialise: bool = True):
        super().__init__()
        config.check()
        self.config = config
        vocab_size = config.n_ids(vocab_size)
        self.vocab_size, self.end_of_text = vocab_size, end_of_text
        self.mask_token_id = vocab_size if config.mask_token_id is None else config.mask_token_id
        self.begin_token_id = end_of_text if config.begin_token_id is None else config.begin_token_id
        self.end_token_ids = frozenset([end_of_text, *(config.end_token_ids or ())])
        self._check_ids()
        rows = max(vocab_size, self.mask_token_id + 1)
        self.embedding = nn.Embedding(rows, config.dim, _weight=torch.empty(rows, config.dim))
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.final_norm = NORMS[config.norm](config.dim, config.norm_eps)
        self.head_weight = None if config.tied_embeddings else nn.Parameter(torch.empty(vocab_size, config.dim))
        self.latent_weight = nn.Parameter(torch.empty(config.dim, config.latent)) if config.latent else None
        self.rope = Rope(config.head_width, config.rope_theta, config.rope_scaling)
        self.attend: Backend = Eager()
        self.recompute = False  # layers are computed again in the backward pass instead of being kept
        self.is_expendable = False  # weights can be read again, so `fused.for_inference` may fuse them in place
        self._n_parameters = sum(parameter.numel() for parameter in self.parameters())
        if initialise:
            self.reset_parameters()

    def _check_ids(self) -> None:
        """Raise a ValueError for ids that are none of the vocabulary, or for a MASK that means something else, too."""
        n, ends = self.vocab_size, ", ".join(map(str, sorted(self.end_token_ids)))
        if not all(0 <= token < n for token in self.end_token_ids):
            raise ValueError(f"model.end_token_ids: {ends} must be ids of the vocabulary (0 to {n - 1})")
        if not 0 <= self.mask_token_id <= n or self.mask_token_id in self.end_token_ids:
            raise ValueError(
                f"model.mask_token_id: {self.mask_token_id} must be one of the {n} ids of the vocabulary and not that "
                f"of end of text ({ends}); or null, for an id behind them"
            )
        if not 0 <= self.begin_token_id < n or self.begin_token_id == self.mask_token_id:
            raise ValueError(
                f"model.begin_token_id: {self.begin_token_id} must be one of the {n} ids of the vocabulary and not "
                "that of MASK; or null, for end of text"
            )

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def banned_token_id(self) -> int | None:
        """The id of MASK where it has a row in the head and may not be predicted; else None."""
        return self.mask_token_id if self.config.ban_mask and self.mask_token_id < self.vocab_size else None

    def reset_parameters(self) -> None:
        """Draw weights: normal, of standard deviation 1/sqrt(fan-in); what writes to the residual starts smaller.

        They are drawn on the CPU, one tensor at a time: the same numbers on every device, also where they are sharded.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
                continue
            if name == "latent_weight":  # at first a model is what it is without a latent
                nn.init.zeros_(parameter)
                continue
            std = 0.02
            if name not in ("embedding.weight", "head_weight"):
                depth = math.sqrt(2 * self.config.n_layers) if name.endswith(("wo.weight", "w_down.weight")) else 1
                std = parameter.shape[1] ** -0.5 / depth
            if parameter.device.type != "meta":
                drawn = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu").normal_(std=std)
                with torch.no_grad():
                    parameter.copy_(sharded_like(drawn, parameter))

    def forward(
        self, tokens: Tensor, pattern: Pattern, cache: KVCache | None = None, *, read: Tensor | None = None,
        latent: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return hidden states, normalised for the head.

        Args:
            tokens: (b, r) ids, MASK among them.
            pattern: where the rows stand and who sees whom; the last layer computes only the queries of
                `pattern.reading()`.
            cache: keys and values of earlier forwards, to which those of these rows are added.
            read: flat indices into (b, q), the rows whose hidden state is wanted; None: all of them.
            latent: (b, r, config.latent) random numbers of those rows that are MASK, 0 for the others; None: all are 0.

        Returns:
            (m, dim) for `read` of length m, else (b, q, dim).
        """
        x = self.embedding(tokens)
        if self.latent_weight is not None:
            # Without noise these weights take part all the same, as DDP wants of every parameter.
            noise = x.new_zeros(*tokens.shape, self.config.latent) if latent is None else latent.to(x.dtype)
            x = x + F.linear(noise, self.latent_weight)
        angles = self.rope.angles(pattern.positions, pattern.n_positions, x.device, self.dtype)
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            here = pattern if i < last else pattern.reading()
            rows = read if i == last else None
            memory = None if cache is None else cache.layer(i)
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, angles, here, self.attend, memory, read=rows, use_reentrant=False)
            else:
                x = layer(x, angles, here, self.attend, memory, read=rows)
        return self.final_norm(x)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which it multiplies, here and now, and keeps keys and values."""
        return cast(Layer, self.layers[0]).dtype

    def new_cache(self, rows: int, slots: int) -> KVCache:
        """Allocate a cache for `rows` texts of at most `slots` positions each, the begin token among them."""
        return KVCache.empty(self.config, rows, slots, self.device, self.dtype)

    def head(self, hidden: Tensor) -> Tensor:
        """Map (..., dim) to logits (..., vocab); that of a banned MASK is -inf."""
        logits = F.linear(hidden, self.head_matrix())
        if self.banned_token_id is not None:
            logits[..., self.banned_token_id] = -torch.inf
        return logits

    def head_matrix(self) -> Tensor:
        """Return the weights of the head, (vocab, dim)."""
        return self.embedding.weight[: self.vocab_size] if self.head_weight is None else self.head_weight

    def share_inputs(self, model: Transformer) -> None:
        """Take what another model embeds ids and noise with, to be read alone; what is sharded is put together."""
        self.embedding = nn.Embedding.from_pretrained(full(model.embedding.weight.detach()))
        weight = model.latent_weight
        self.latent_weight = None if weight is None else nn.Parameter(full(weight.detach()), requires_grad=False)

    def n_parameters(self) -> int:
        """Count the parameters of the network as it was made, also where its weights are fused by now."""
        return self._n_parameters
