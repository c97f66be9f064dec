"""The block loop: prefill, denoise, commit, next block; ragged prompts, a cache, and randomness that keeps rows apart.

    prompt's full blocks -> per block: denoise (some forwards) -> commit (its clean keys and values) -> next block

What is to be committed rides in the first forward of the next block, the prompt like any finished block, so a block
costs its denoising forwards and no more. Rows step together, block iteration by block iteration, each at a block of its
own; a row that is done leaves the batch.

Shape legend: r active rows, B block size, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hybrid import counter
from hybrid.cache import KVCache
from hybrid.decoding.sampling import Sampling
from hybrid.decoding.view import Decoder, Prediction, View
from hybrid.model import Transformer
from hybrid.streams import block_hidden

MAX_IDLE_STEPS = 10_000
"""Consecutive steps without a revealed token after which a decoder is taken to be stuck."""


@dataclass
class Row:
    """One text being generated."""

    prompt: list[int]
    key: int  # what its randomness is keyed by
    start: int  # first position of its live block
    n_new: int = 0  # new tokens that are final and wanted
    is_done: bool = False


@dataclass(frozen=True)
class Progress:
    """The state after a step. `tokens[i]` are the new tokens of prompt i so far, mask_token_id where still unknown."""

    tokens: list[list[int]]
    nfe: int
    done: bool


@dataclass
class Generation:
    """Finished texts.

    `tokens[i]` are the new tokens of prompt i only, an end-of-text that stopped it included; `nfe` counts every forward
    of the batch (the prompt's pass rides in the first).
    """

    tokens: list[list[int]]
    nfe: int
    seconds: float


@dataclass(frozen=True)
class Engine:
    """How to generate from a model, block by block.

    Args:
        seq_len: the longest text (prompt and new tokens); blocks end there or at multiples of `block_size`.
        cache: False recomputes everything at every forward: the same texts, slowly.
        stop_at_end: rows end at an end-of-text token.
        document_mask: tokens before the last end-of-text of a prompt are another document and unseen.
        precision: makes the context in which the network runs, e.g. an autocast.
    """

    model: Transformer
    seq_len: int
    block_size: int
    decoder: Decoder
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    cache: bool = True
    stop_at_end: bool = True
    document_mask: bool = False
    precision: Callable[[], AbstractContextManager] = nullcontext

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Generation:
        """Run to the end.

        Raises:
            ValueError: as `stream`.
        """
        started = time.perf_counter()
        result = Progress([[] for _ in prompts], 0, True)
        for step in self.stream(prompts, max_new_tokens):
            result = step
        return Generation(result.tokens, result.nfe, time.perf_counter() - started)

    def stream(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[Progress]:
        """An iterator that yields after every step that revealed something.

        Raises:
            ValueError: a prompt that does not fit, ids that the vocabulary does not have, a decoder that is stuck.
        """
        self._check(prompts, max_new_tokens)
        return _Session(self, prompts, max_new_tokens).run() if prompts and max_new_tokens else iter(())

    def _check(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        if not isinstance(max_new_tokens, int) or max_new_tokens < 0:
            raise ValueError(f"max_new_tokens: {max_new_tokens!r} must be an integer of at least 0")
        vocab = self.model.vocab_size
        for i, prompt in enumerate(prompts):
            if len(prompt) + max_new_tokens > self.seq_len:
                raise ValueError(
                    f"max_new_tokens: {max_new_tokens} new tokens behind prompt {i} of {len(prompt)} tokens exceed the "
                    f"context of {self.seq_len} (data.seq_len); shorten the prompt, or ask for at most "
                    f"{max(self.seq_len - len(prompt), 0)} tokens"
                )
            bad = next((t for t in prompt if not 0 <= t < vocab), None)
            if bad is not None:
                raise ValueError(f"prompts: token {bad} of prompt {i} is not in the vocabulary (0 to {vocab - 1})")


class _Live:
    """The live blocks of the active rows. `tokens` and `is_masked` (r, B) change as they are denoised."""

    def __init__(self, rows: list[Row], text: Tensor, index: list[int], engine: Engine):
        device, B = text.device, engine.block_size
        active = [rows[i] for i in index]
        self.mask = engine.model.mask_token_id
        self.index = torch.tensor(index, device=device)[:, None]
        self.n_valid = [min(B, engine.seq_len - row.start) for row in active]
        offset = torch.arange(B, device=device)
        self.position = torch.tensor([row.start for row in active], device=device)[:, None] + offset  # (r, B)
        self.is_valid = offset < torch.tensor(self.n_valid, device=device)[:, None]
        self.is_fixed = self.position < torch.tensor([len(row.prompt) for row in active], device=device)[:, None]
        self.key = torch.tensor([row.key for row in active], device=device)[:, None]
        self.update(text[self.index, self.position])

    def update(self, tokens: Tensor) -> None:
        self.tokens = tokens
        self.is_masked = (tokens == self.mask) & self.is_valid


class _Session:
    """One generation: the texts, their cache, and the loop over blocks."""

    def __init__(self, engine: Engine, prompts: Sequence[Sequence[int]], max_new_tokens: int):
        self.engine, self.model, self.max_new_tokens = engine, engine.model, max_new_tokens
        B, device = engine.block_size, engine.model.embedding.weight.device
        keys = counter.row_keys(prompts)
        self.rows = [Row(list(p), key, len(p) // B * B) for p, key in zip(prompts, keys, strict=True)]
        self.active = list(range(len(self.rows)))
        longest = max(len(row.prompt) for row in self.rows) + max_new_tokens
        width = -(-longest // B) * B  # the last block of a row may reach beyond what is wanted of it
        text = torch.full((len(self.rows), width), self.model.mask_token_id, dtype=torch.long)
        for i, row in enumerate(self.rows):
            text[i, : len(row.prompt)] = torch.tensor(row.prompt, dtype=torch.long)
        self.text = text.to(device)
        self.begin = self.model.config.begin
        with engine.precision():
            self.cache = KVCache.empty(self.model, len(self.rows), self.begin + min(width, engine.seq_len))
        self.documents = self._documents() if engine.document_mask else None
        self.nfe = 0

    def run(self) -> Iterator[Progress]:
        while self.active:
            live = _Live(self.rows, self.text, self.active, self.engine)
            yield from self._denoise(live)
            self._advance()
            yield self._progress()

    def _denoise(self, live: _Live) -> Iterator[Progress]:
        """Step until nothing of the live blocks is masked."""
        decoder, state, step, idle = self.engine.decoder, None, 0, 0
        while bool(live.is_masked.any()):
            view = self._view(live, step)
            if step == 0:
                state = decoder.start(view)
            reveal, remask = decoder.select(view, state)
            changed = bool(reveal.any())
            tokens = live.tokens
            if changed:
                tokens = torch.where(reveal & live.is_masked, view.proposal, tokens)
            if remask is not None:
                tokens = tokens.masked_fill(remask & ~live.is_fixed & live.is_valid, live.mask)
            live.update(tokens)
            idle = 0 if changed else idle + 1
            if idle > MAX_IDLE_STEPS:
                raise ValueError(f"decoder: {decoder!r} revealed nothing in {idle} steps; select must make progress")
            step += 1
            if changed:
                self.text[live.index, live.position] = live.tokens
                yield self._progress()

    def _view(self, live: _Live, step: int) -> View:
        seed, tokens, is_masked = self.engine.seed, live.tokens, live.is_masked

        def draw() -> Tensor:
            return counter.uniform(seed, counter.DECIDE, live.key, live.position, step)

        def forward() -> Prediction:
            hidden = self._forward(tokens, live.n_valid)
            with torch.no_grad(), self.engine.precision():
                logits = self.model.head(hidden[is_masked])
            log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
            uniform = counter.uniform(seed, counter.TOKEN, live.key, live.position, step)
            return Prediction(log_probs, self.engine.sampling.propose(log_probs, uniform[is_masked]))

        return View(step, tokens, is_masked, live.is_fixed, live.is_valid, draw, forward)

    def _forward(self, tokens: Tensor, n_valid: list[int]) -> Tensor:
        """Hidden states (r, B, dim) that predict the live blocks `tokens` (r, B); commits what precedes them."""
        if not self.engine.cache:
            self.cache.reset()
        pending = []
        for i, length in zip(self.active, self.cache.lengths, strict=True):
            text = self.text[i, max(length - self.begin, 0) : self.rows[i].start]
            if self.begin and length == 0:
                text = torch.cat([text.new_tensor([self.model.end_of_text]), text])
            pending.append(text)
        documents = None if self.documents is None else self.documents[self.active]
        self.nfe += 1
        with torch.no_grad(), self.engine.precision():
            return block_hidden(self.model, self.cache, pending, tokens, n_valid, self.engine.block_size, documents)

    def _documents(self) -> Tensor:
        """(rows, slots) document of each cache slot; what is generated belongs to the last document of the prompt."""
        documents = torch.zeros(len(self.rows), self.cache.bin + 1, dtype=torch.long)
        for i, row in enumerate(self.rows):
            ends = torch.tensor([t == self.model.end_of_text for t in row.prompt], dtype=torch.long)
            count = ends.cumsum(0)
            end = self.begin + len(ends)
            documents[i, self.begin : end] = count if self.begin else count - ends
            documents[i, end:] = int(count[-1]) if len(ends) else 0
        return documents.to(self.text.device)

    def _advance(self) -> None:
        """Move every active row to its next block; rows that are done leave the cache."""
        texts = self.text.tolist()
        for i in self.active:
            row = self.rows[i]
            first, end = max(row.start, len(row.prompt)), min(row.start + self.engine.block_size, self.engine.seq_len)
            row.start += self.engine.block_size
            row.n_new = min(end - len(row.prompt), self.max_new_tokens)
            row.is_done = row.n_new >= self.max_new_tokens
            new = texts[i][first:end]
            if self.engine.stop_at_end and self.model.end_of_text in new:
                stop = first + new.index(self.model.end_of_text) + 1 - len(row.prompt)
                row.n_new, row.is_done = min(stop, self.max_new_tokens), True
        going = [k for k, i in enumerate(self.active) if not self.rows[i].is_done]
        if going and len(going) < len(self.active):
            self.cache.keep(going)
        self.active = [self.active[k] for k in going]

    def _progress(self) -> Progress:
        tokens = []
        for row, text in zip(self.rows, self.text.tolist(), strict=True):
            n = row.n_new
            if not row.is_done:  # the live block too
                n = min(row.start + self.engine.block_size - len(row.prompt), self.max_new_tokens)
            tokens.append(text[len(row.prompt) : len(row.prompt) + n])
        return Progress(tokens, self.nfe, done=not self.active)
