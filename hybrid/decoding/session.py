"""A generation: the texts, the networks that read them, and where each text stands, whatever loop writes them."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from hybrid.decoding.denoiser import Network, Row
from hybrid.decoding.graphs import Replays
from hybrid.decoding.prompts import unknown_from
from hybrid.decoding.results import Change, GenerationState
from hybrid.decoding.step import Networks
from hybrid.device import autocast_dtype, send
from hybrid.model import Transformer
from hybrid.model.block_pass import Sight
from hybrid.model.fused import for_inference

Watch = Callable[[int, Change], None]


class Session(ABC):
    """One generation.

    Args:
        engine: the `Engine` that is asked.
        block_size: what is written first in each text begins at a multiple of it.
        margin: columns of MASK behind the longest text.
        spare: slots of a cache behind those of the longest text.
    """

    def __init__(
        self, engine: Any, prompts: list[list[int]], max_new_tokens: int, row_keys: Sequence[int], watch: Watch | None,
        block_size: int, margin: int = 0, spare: int = 0,
    ):  # fmt: skip
        self.engine, self.mask, self.max_new_tokens = engine, engine.model.mask_token_id, max_new_tokens
        self.watch, self.block_size, self.spare = watch, block_size, spare
        self.kept: list[int] = []  # as that of `Generation`
        longest = max(map(len, prompts)) + max_new_tokens
        width = -(-longest // block_size) * block_size  # the last block of a row may reach beyond what is wanted of it
        self.end = width if engine.config.slide else min(width, engine.seq_len)  # the last block ends here
        self.rows = [
            Row(
                i, prompt, key, unknown_from(prompt, self.mask) // block_size * block_size,
                self.end if max_new_tokens else len(prompt),
            )
            for i, (prompt, key) in enumerate(zip(prompts, row_keys, strict=True))
        ]  # fmt: skip
        for row in self.rows:
            if not max_new_tokens and self.mask not in row.prompt:
                row.finish_reason = "length"
        self.active = [row for row in self.rows if row.finish_reason is None]
        text = torch.full((len(self.rows), width + margin), self.mask, dtype=torch.long)
        for row in self.rows:
            text[row.index, : len(row.prompt)] = torch.tensor(row.prompt, dtype=torch.long)
        self.text = send(text, engine.model.embedding.weight.device)
        self.is_given = self.text != self.mask
        config = engine.config
        denoiser = self._fused(engine.model)
        self.networks = Networks(
            denoiser=self._network(denoiser),
            without_prompt=self._network(denoiser, sees_prompts=False) if config.guidance else None,
            planner=None if config.planner is None else self._network(self._fused(config.planner)),
            guidance=config.guidance,
        )

    def _fused(self, model: Transformer) -> Transformer:
        with self.engine.precision():
            return for_inference(model, autocast_dtype(model.embedding.weight))

    def _network(self, model: Transformer, sees_prompts: bool = True) -> Network:
        engine = self.engine
        n_slots = model.config.begin + self.end + self.spare
        n = len(self.active)
        replays = Replays.take(model, n, n_slots) if engine.config.records(model.device) else None
        cache = model.new_cache(n, n_slots) if replays is None else replays.rows(n)
        documents = document_of_slots(self.rows, model, n_slots + 1) if engine.document_mask else None
        window = engine.seq_len if engine.config.slide else None
        sight = Sight(self.block_size, documents, window)
        return engine.network(model, cache, sight, engine.config.cache, sees_prompts, replays)

    def run(self) -> Iterator[GenerationState]:
        """Yield the state after every step that revealed something, and at the end."""
        with closing(self.networks):
            yield from self.write()
        planner = self.networks.planner
        if planner is not None and not planner.nfe:
            warnings.warn(f"planner: {self.engine.decoder!r} asked for none; it had no effect", stacklevel=3)

    @abstractmethod
    def write(self) -> Iterator[GenerationState]:
        """Write all texts to their ends."""

    def finish(self, row: Row, first: int, new: list[int], end: int) -> None:
        """Move a row on, which may be done: `new` are its tokens from `first` to `end`, all behind the prompt."""
        ends = self.engine.model.end_token_ids
        row.n_new = max(min(end - len(row.prompt), self.max_new_tokens), 0)
        if end - len(row.prompt) >= self.max_new_tokens:
            row.finish_reason = "length"
        if self.engine.config.stop_at_end and not ends.isdisjoint(new):
            stop = first + next(i for i, token in enumerate(new) if token in ends) + 1 - len(row.prompt)
            row.n_new = min(stop, self.max_new_tokens)
            row.finish_reason = "end_of_text" if stop <= self.max_new_tokens else "length"

    def drop_finished(self) -> None:
        """Take rows that are done out of the batch, and of the caches."""
        going = [k for k, row in enumerate(self.active) if row.finish_reason is None]
        if going and len(going) < len(self.active):
            for network in self.networks.all:
                network.cache.keep(going)
        self.active = [self.active[k] for k in going]

    def shown(self, row: Row) -> int:
        """Return how many new tokens of a row that is not done are shown, known or not."""
        return row.n_new

    def state(self) -> GenerationState:
        """Return where the texts are."""
        counts = [row.n_new if row.finish_reason is not None else self.shown(row) for row in self.rows]
        spans = [(len(row.prompt), len(row.prompt) + n) for row, n in zip(self.rows, counts, strict=True)]
        reasons = [row.finish_reason for row in self.rows]
        return GenerationState(self.networks.nfe, not self.active, self.text.clone(), spans, reasons, tuple(self.kept))


def document_of_slots(rows: list[Row], model: Transformer, n_slots: int) -> Tensor:
    """(rows, n_slots) document of each cache slot; what is generated belongs to the last document of the prompt."""
    documents = torch.zeros(len(rows), n_slots, dtype=torch.long)
    begin = model.config.begin
    for i, row in enumerate(rows):
        ends = torch.tensor([t == model.end_of_text for t in row.prompt], dtype=torch.long)
        count = ends.cumsum(0)
        end = begin + len(ends)
        documents[i, begin:end] = count if begin else count - ends
        documents[i, end:] = int(count[-1]) if len(ends) else 0
    return send(documents, model.device)
