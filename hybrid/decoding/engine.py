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
    """One text being generated. `start` is the first position of its live block."""

    prompt: list[int]
    key: int
    start: int
    n_new: int = 0  # tokens that are final and wanted


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


@dataclass
class Engine:
    """Generates from a model, block by block.

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
        started = time.perf_counter()
        result = Progress([[] for _ in prompts], 0, True)
        for step in self.stream(prompts, max_new_tokens):
            result = step
        return Generation(result.tokens, result.nfe, time.perf_counter() - started)

    def stream(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[Progress]:
        """Yield after every step that revealed something.

        Raises:
            ValueError: a prompt that does not fit, or ids that the vocabulary does not have.
        """
        self._check(prompts, max_new_tokens)
        B = self.block_size
        keys = counter.row_keys(prompts)
        rows = [Row(list(p), key, len(p) // B * B) for p, key in zip(prompts, keys, strict=True)]
        self._finished = [max_new_tokens == 0 for _ in rows]
        active = [i for i in range(len(rows)) if not self._finished[i]]
        self.nfe = 0
        if not active:
            return
        device = self.model.embedding.weight.device
        longest = max(len(row.prompt) for row in rows) + max_new_tokens
        width = -(-longest // B) * B  # the last block of a row may reach beyond what is wanted of it
        text = torch.full((len(rows), width), self.model.mask_token_id, dtype=torch.long)
        for i, row in enumerate(rows):
            text[i, : len(row.prompt)] = torch.tensor(row.prompt, dtype=torch.long)
        self._text = text.to(device)
        self._begin = int(self.model.config.prediction == "next_token")
        with self.precision():
            self._cache = KVCache.empty(self.model, len(active), self._begin + min(width, self.seq_len))
        while active:
            yield from self._block(rows, active, max_new_tokens)
            active = self._advance(rows, active, max_new_tokens)
            yield self._progress(rows, max_new_tokens, done=not active)

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

    def _block(self, rows: list[Row], active: list[int], max_new_tokens: int) -> Iterator[Progress]:
        """Denoise the live block of every active row."""
        device, B, mask = self._text.device, self.block_size, self.model.mask_token_id
        index = torch.tensor(active, device=device)
        starts = torch.tensor([rows[i].start for i in active], device=device)[:, None]
        n_live = [min(B, self.seq_len - rows[i].start) for i in active]
        position = starts + torch.arange(B, device=device)  # (r, B)
        is_valid = torch.arange(B, device=device) < torch.tensor(n_live, device=device)[:, None]
        is_fixed = position < torch.tensor([len(rows[i].prompt) for i in active], device=device)[:, None]
        keys = torch.tensor([rows[i].key for i in active], device=device)[:, None]
        documents = self._documents(rows, active)

        def forward(live: Tensor, is_masked: Tensor, step: int) -> Prediction:
            hidden = self._forward(rows, active, live, n_live, documents)
            with torch.no_grad(), self.precision():
                logits = self.model.head(hidden[is_masked])
            log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
            draw = counter.uniform(self.seed, counter.TOKEN, keys, position, step)
            return Prediction(log_probs, self.sampling.propose(log_probs, draw[is_masked]))

        state, idle = None, 0
        live = self._text[index[:, None], position]  # (r, B)
        is_masked = (live == mask) & is_valid
        step = 0
        while bool(is_masked.any()):
            view = View(
                step, live, is_masked, is_fixed, is_valid,
                lambda i, step=step: counter.uniform(self.seed, counter.DECIDE, keys, position, step, i),
                lambda live=live, is_masked=is_masked, step=step: forward(live, is_masked, step),
            )  # fmt: skip
            if step == 0:
                state = self.decoder.start(view)
            reveal, remask = self.decoder.select(view, state)
            changed = bool(reveal.any())
            if changed:
                live = torch.where(reveal & is_masked, view.proposal, live)
            if remask is not None:
                live = live.masked_fill(remask & ~is_fixed & is_valid, mask)
            idle = 0 if changed else idle + 1
            if idle > MAX_IDLE_STEPS:
                raise ValueError(
                    f"decoder: {self.decoder!r} revealed nothing in {idle} steps; select must make progress"
                )
            is_masked = (live == mask) & is_valid
            self._text[index[:, None], position] = live
            step += 1
            if changed:
                yield self._progress(rows, max_new_tokens, done=False)

    def _forward(
        self, rows: list[Row], active: list[int], live: Tensor, n_live: list[int], documents: Tensor | None
    ) -> Tensor:
        """Hidden states (r, B, dim) that predict the live block; commits what precedes it."""
        if not self.cache:
            self._cache.reset()
        pending = []
        for i, length in zip(active, self._cache.lengths, strict=True):
            text = self._text[i, max(length - self._begin, 0) : rows[i].start]
            if self._begin and length == 0:
                text = torch.cat([text.new_tensor([self.model.end_of_text]), text])
            pending.append(text)
        self.nfe += 1
        with torch.no_grad(), self.precision():
            return block_hidden(self.model, self._cache, pending, live, n_live, self.block_size, documents)

    def _documents(self, rows: list[Row], active: list[int]) -> Tensor | None:
        """(r, slots) document of each cache slot; what is generated belongs to the last document of the prompt."""
        if not self.document_mask:
            return None
        slots = self._cache.bin + 1
        documents = torch.zeros(len(active), slots, dtype=torch.long)
        for k, i in enumerate(active):
            ends = torch.tensor([t == self.model.end_of_text for t in rows[i].prompt], dtype=torch.long)
            count = ends.cumsum(0)
            document = count if self._begin else count - ends
            end = self._begin + len(ends)
            documents[k, self._begin : end] = document
            documents[k, end:] = int(count[-1]) if len(ends) else 0
        return documents.to(self._text.device)

    def _advance(self, rows: list[Row], active: list[int], max_new_tokens: int) -> list[int]:
        """Move to the next block; return the rows that go on, and drop the others from the cache."""
        texts = self._text.tolist()
        going = []
        for k, i in enumerate(active):
            row = rows[i]
            first, end = max(row.start, len(row.prompt)), min(row.start + self.block_size, self.seq_len)
            row.n_new = min(end - len(row.prompt), max_new_tokens)
            new = texts[i][first:end]
            if self.stop_at_end and self.model.end_of_text in new:
                stop = first + new.index(self.model.end_of_text) + 1 - len(row.prompt)
                row.n_new = min(stop, max_new_tokens)
                self._finished[i] = True
            row.start += self.block_size
            if row.n_new >= max_new_tokens or end >= self.seq_len:
                self._finished[i] = True
            if not self._finished[i]:
                going.append(k)
        if going and len(going) < len(active):
            self._cache.keep(going)
        return [active[k] for k in going]

    def _progress(self, rows: list[Row], max_new_tokens: int, done: bool) -> Progress:
        texts = self._text.tolist()
        tokens = []
        for i, row in enumerate(rows):
            n = row.n_new
            if not self._finished[i]:
                n = min(row.start + self.block_size - len(row.prompt), max_new_tokens, self.seq_len - len(row.prompt))
            tokens.append(texts[i][len(row.prompt) : len(row.prompt) + n])
        return Progress(tokens, self.nfe, done)
