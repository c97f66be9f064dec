"""A model of this repository as an evaluation model.

Shape legend: b texts of a batch, N tokens of a text, D masks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hybrid.device import precision_context
from hybrid.evaluation.base import Reading
from hybrid.lm import LanguageModel
from hybrid.model.two_stream import two_stream_hidden

DRAWS = 8
"""Noise draws of the bound, for a model that was not trained at block size 1."""


@dataclass(frozen=True)
class OwnModel:
    """Score by the exact likelihood if the model was trained at block size 1, else by the bound at its first size.

    The first token is scored like any other, given nothing.

    Features are the mean over a text's tokens of the final hidden state that predicts each. Half of every block is
    masked at a time (position l in draw l mod 2): every state is one that training has seen, and the other half of the
    text is in it.
    """

    lm: LanguageModel
    path: str = ""
    batch_texts: int = 32
    seed: int = 0

    @property
    def block_size(self) -> int:
        return 1 if 1 in self.lm.block_sizes else self.lm.block_sizes[0]

    @property
    def method(self) -> str:
        return "exact" if self.block_size == 1 else "bound"

    @property
    def about(self) -> dict[str, Any]:
        name = self.lm.config.run.name
        return {"kind": "hybrid", "name": name, "path": self.path, "likelihood": self.method,
                "block_size": self.block_size, "context": self.lm.config.data.seq_len,
                "checkpoint": self.lm.origin.checkpoint}  # fmt: skip

    def read(self, texts: Sequence[str]) -> Reading:
        ids, is_cut = [], np.zeros(len(texts), dtype=bool)
        n_bytes = np.zeros(len(texts), dtype=np.int64)
        is_lossless = True
        for i, text in enumerate(texts):
            ids.append(self._encode(text))
            is_lossless &= self.lm.tokenizer.decode(ids[i]) == text
            is_cut[i] = len(ids[i]) > self.lm.config.data.seq_len
            ids[i] = ids[i][: self.lm.config.data.seq_len]
            n_bytes[i] = len((self.lm.tokenizer.decode(ids[i]) if is_cut[i] else text).encode())
        nats, stderr = np.zeros(len(texts)), np.zeros(len(texts))
        features = np.zeros((len(texts), self.lm.config.model.dim), dtype=np.float32)
        for index in equally_long(ids, self.batch_texts):
            tokens = torch.tensor([ids[i] for i in index], device=self.lm.device)
            result = self.lm.nll(tokens, self.block_size, self.method, draws=DRAWS, seed=self.seed)
            nats[index], stderr[index] = result.nll.cpu(), result.stderr.cpu()
            features[index] = self._features(tokens)
        return Reading(nats, stderr, np.array([len(row) for row in ids]), n_bytes, features, is_cut, is_lossless)

    def _encode(self, text: str) -> list[int]:
        try:
            return self.lm.tokenizer.encode(text)
        except ValueError as error:
            raise ValueError(f"judge: {self.path}: {error}") from None

    @torch.no_grad()
    def _features(self, tokens: torch.Tensor) -> np.ndarray:
        """(b, N) ids -> (b, dim)"""
        draws = min(2, self.block_size)
        position = torch.arange(tokens.shape[1], device=tokens.device)
        masked = position % draws == torch.arange(draws, device=tokens.device)[:, None]  # (D, N)
        with precision_context(self.lm.precision, self.lm.device)():
            hidden = two_stream_hidden(self.lm.model, tokens, masked.expand(len(tokens), -1, -1), self.block_size)
        return hidden.float().unflatten(0, tokens.shape).mean(1).cpu().numpy()  # every token is masked in one draw


def equally_long(ids: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
    """Indices in batches of rows of one length, which need no padding; rows without a token are left out."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(ids):
        by_length[len(row)].append(i)
    for length, index in sorted(by_length.items()):
        if length:
            yield from (index[start : start + most] for start in range(0, len(index), most))
