"""The block loop: prefill, denoise, commit, next block; ragged prompts, a cache, and randomness that keeps rows apart.

    prompt's full blocks -> per block: denoise (some forwards) -> commit (its clean keys and values) -> next block

What is to be committed rides in the first forward of the next block, the prompt like any finished block, so a block
costs its denoising forwards and no more. Rows step together, block iteration by block iteration, each at a block of its
own; a row that is done leaves the batch. `network.py` runs the networks, `step.py` makes the view that a decoder gets.

Shape legend: r active rows, B block size.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from hybrid import counter
from hybrid.decoding.network import Live, Network, Row, document_of_slots
from hybrid.decoding.sampling import Sampling
from hybrid.decoding.step import Networks, Step
from hybrid.decoding.uniforms import Uniforms
from hybrid.decoding.view import Decoder, Prediction
from hybrid.model import Transformer
from hybrid.model.block_pass import Sight
from hybrid.model.cache import KVCache
from hybrid.model.fused import for_inference

MAX_IDLE_STEPS = 10_000
"""Consecutive steps without a revealed token after which a decoder is taken to be stuck."""


@dataclass(frozen=True, eq=False)
class Progress:
    """The state after a step."""

    nfe: int
    done: bool
    text: Tensor  # (rows, width) prompts and what is behind them
    spans: list[tuple[int, int]]  # of each row, where its new tokens stand

    @cached_property
    def tokens(self) -> list[list[int]]:
        """The new tokens of each prompt so far, mask_token_id where still unknown."""
        return [row[first:end] for row, (first, end) in zip(self.text.tolist(), self.spans, strict=True)]


@dataclass(frozen=True)
class Change:
    """What a step did to one text: it revealed tokens, and then took some back, of these or of earlier ones."""

    nfe: int  # of the batch so far
    revealed: list[tuple[int, int, float]]  # position, token, and its `View.confidence`
    remasked: list[int]  # positions


@dataclass
class Generation:
    """Finished texts.

    `tokens[i]` are the new tokens of prompt i only, an end-of-text that stopped it included; `nfe` counts every forward
    of the batch by any network (the prompt's pass rides in the first).
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
        precision: makes the context in which the networks run, e.g. an autocast.
        guidance: w of (1 + w) log p(x | prompt) - w log p(x | prompt masked), normalised; above 0 a step has two
            forwards (while a row with a prompt is written), and rows without a prompt stay as they are.
        planner: judges tokens for decoders that ask (`p2`); None: the model itself does. Of the same vocabulary.
        slide: texts may be longer than `seq_len`; a block then sees the last tokens before it that fit into `seq_len`
            with it. Farther ones still act through what was computed from them, as in any sliding-window attention.
        network: how a model reads the texts; another class only to compare it (hybrid/bench).

    Raises:
        ValueError: guidance out of range, or a planner of another vocabulary.
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
    guidance: float = 0.0
    planner: Transformer | None = None
    slide: bool = False
    network: type[Network] = Network

    def __post_init__(self) -> None:
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance: {self.guidance!r} must be a finite number of at least 0 (0: no guidance)")
        if self.planner is not None:
            sizes = [(m.vocab_size, m.end_of_text) for m in (self.model, self.planner)]
            if sizes[0] != sizes[1]:
                raise ValueError(
                    f"planner: its vocabulary (size, end of text) {sizes[1]} is not that of the model, {sizes[0]}; "
                    "take a model with the same tokenizer"
                )

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, keys: Sequence[int] | None = None
    ) -> Generation:
        """Run to the end.

        Raises:
            ValueError: as `stream`.
        """
        started = time.perf_counter()
        steps = deque(self.stream(prompts, max_new_tokens, keys), maxlen=1)
        tokens, nfe = (steps[0].tokens, steps[0].nfe) if steps else ([[] for _ in prompts], 0)
        return Generation(tokens, nfe, time.perf_counter() - started)

    def stream(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, keys: Sequence[int] | None = None,
        watch: Callable[[int, Change], None] | None = None,
    ) -> Iterator[Progress]:  # fmt: skip
        """An iterator that yields after every step that revealed something.

        Args:
            keys: of the prompts' randomness, for a part of a larger batch; None: `counter.row_keys(prompts)`.
            watch: is told after every step, for each unfinished prompt, its number and what changed.

        Raises:
            ValueError: a prompt that does not fit, ids that the vocabulary does not have, a decoder that is stuck.
        """
        self._check(prompts, max_new_tokens)
        if not prompts or not max_new_tokens:
            return iter(())
        return _Session(self, prompts, max_new_tokens, keys or counter.row_keys(prompts), watch).run()

    def _check(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        if not isinstance(max_new_tokens, int) or max_new_tokens < 0:
            raise ValueError(f"max_new_tokens: {max_new_tokens!r} must be an integer of at least 0")
        vocab = self.model.vocab_size
        for i, prompt in enumerate(prompts):
            if len(prompt) + max_new_tokens > self.seq_len and not self.slide:
                raise ValueError(
                    f"max_new_tokens: {max_new_tokens} new tokens behind prompt {i} of {len(prompt)} tokens exceed the "
                    f"context of {self.seq_len} (data.seq_len); shorten the prompt, ask for at most "
                    f"{max(self.seq_len - len(prompt), 0)} tokens, or let the context slide (slide)"
                )
            bad = next((t for t in prompt if not 0 <= t < vocab), None)
            if bad is not None:
                raise ValueError(f"prompts: token {bad} of prompt {i} is not in the vocabulary (0 to {vocab - 1})")


class _Session:
    """One generation: the texts, the networks that read them, and the loop over blocks."""

    def __init__(
        self, engine: Engine, prompts: Sequence[Sequence[int]], max_new_tokens: int, keys: Sequence[int],
        watch: Callable[[int, Change], None] | None,
    ):  # fmt: skip
        self.engine, self.mask, self.max_new_tokens = engine, engine.model.mask_token_id, max_new_tokens
        self.watch = watch
        B = engine.block_size
        pairs = enumerate(zip(prompts, keys, strict=True))
        self.rows = [Row(i, list(prompt), key, len(prompt) // B * B) for i, (prompt, key) in pairs]
        self.active = self.rows
        longest = max(len(row.prompt) for row in self.rows) + max_new_tokens
        width = -(-longest // B) * B  # the last block of a row may reach beyond what is wanted of it
        text = torch.full((len(self.rows), width), self.mask, dtype=torch.long)
        for row in self.rows:
            text[row.index, : len(row.prompt)] = torch.tensor(row.prompt, dtype=torch.long)
        self.text = text.to(engine.model.embedding.weight.device)
        self.end = width if engine.slide else min(width, engine.seq_len)  # the last block ends here
        denoiser = self._fused(engine.model)
        self.networks = Networks(
            denoiser=self._network(denoiser),
            without_prompt=self._network(denoiser, sees_prompts=False) if engine.guidance else None,
            planner=None if engine.planner is None else self._network(self._fused(engine.planner)),
            guidance=engine.guidance,
        )
        # The law of a model that may predict MASK: a position may be revealed as one, and has to be revealed again.
        self.may_say_mask = self.mask < engine.model.vocab_size and engine.model.banned_token_id is None
        self.uniforms = {purpose: Uniforms(engine.seed, purpose, B) for purpose in (counter.TOKEN, counter.DECIDE)}

    def _fused(self, model: Transformer) -> Transformer:
        with self.engine.precision():
            return for_inference(model, model.dtype)

    def _network(self, model: Transformer, sees_prompts: bool = True) -> Network:
        engine = self.engine
        n_slots = model.config.begin + self.end
        cache = KVCache.empty(model, len(self.rows), n_slots)
        documents = document_of_slots(self.rows, model, n_slots + 1) if engine.document_mask else None
        window = engine.seq_len if engine.slide else None
        sight = Sight(engine.block_size, documents, window)
        return engine.network(model, cache, sight, engine.cache, sees_prompts)

    def run(self) -> Iterator[Progress]:
        engine = self.engine
        while self.active:
            live = Live(self.active, self.text, engine.block_size, self.end, self.mask)
            yield from self._denoise(live)
            self._advance(live)
            yield self._progress()
        planner = self.networks.planner
        if planner is not None and not planner.nfe:
            warnings.warn(f"planner: {engine.decoder!r} asked for none; it had no effect", stacklevel=3)

    def _denoise(self, live: Live) -> Iterator[Progress]:
        """Step until nothing of the live blocks is masked, and `min_steps` of the decoder are over."""
        engine, decoder = self.engine, self.engine.decoder
        state, step, idle = None, 0, 0
        min_steps = getattr(decoder, "min_steps", 0)
        while step < min_steps or bool(live.is_masked.any()):
            here = Step(self.networks, engine.sampling, self.uniforms, self.text, live, step)
            view = here.view()
            if step == 0:
                state = decoder.start(view)
            reveal, remask = decoder.select(view, state)
            changed, prediction = bool(reveal.any()), None
            chosen, tokens = reveal & live.is_masked, live.tokens
            if changed:
                prediction = here.prediction_at(chosen)
                tokens = tokens.masked_scatter(chosen, prediction.proposal)
                if self.may_say_mask:
                    changed = not torch.equal(tokens, live.tokens)
            shown = tokens
            if remask is not None:
                if step >= min_steps:  # a finished row stays as it is, in whatever company
                    remask = remask & live.is_masked.any(-1, keepdim=True)
                tokens = tokens.masked_fill(remask & ~live.is_fixed & live.is_valid, self.mask)
            if self.watch is not None:
                self._tell(live, chosen, prediction, shown, tokens)
            live.update(tokens)
            idle = 0 if changed or step < min_steps else idle + 1
            if idle > MAX_IDLE_STEPS:
                raise ValueError(f"decoder: {decoder!r} revealed nothing in {idle} steps; select must make progress")
            step += 1
            if changed:
                self.text[live.index, live.position] = live.tokens
                yield self._progress()

    def _tell(self, live: Live, chosen: Tensor, prediction: Prediction | None, shown: Tensor, tokens: Tensor) -> None:
        """Tell who watches: `shown` is `live.tokens` with what was revealed, `tokens` without what was taken back."""
        assert self.watch is not None
        confidence = torch.zeros(shown.shape, dtype=torch.float64, device=shown.device)
        if prediction is not None:
            confidence[chosen] = prediction.confidence.double()
        revealed = (live.tokens == self.mask) & (shown != self.mask)
        remasked = (shown != self.mask) & (tokens == self.mask)
        for k, row in enumerate(live.rows):
            columns = (live.position, shown, confidence)
            new = list(zip(*(values[k][revealed[k]].tolist() for values in columns), strict=True))
            self.watch(row.index, Change(self.networks.nfe, new, live.position[k][remasked[k]].tolist()))

    def _advance(self, live: Live) -> None:
        """Move every active row to its next block; rows that are done leave the caches."""
        end_of_text = self.engine.model.end_of_text
        for row, tokens in zip(self.active, live.tokens.tolist(), strict=True):
            first, end = max(row.start, len(row.prompt)), min(row.start + self.engine.block_size, self.end)
            new = tokens[first - row.start : end - row.start]
            row.start += self.engine.block_size
            row.n_new = min(end - len(row.prompt), self.max_new_tokens)
            row.is_done = row.n_new >= self.max_new_tokens
            if self.engine.stop_at_end and end_of_text in new:
                stop = first + new.index(end_of_text) + 1 - len(row.prompt)
                row.n_new, row.is_done = min(stop, self.max_new_tokens), True
        going = [k for k, row in enumerate(self.active) if not row.is_done]
        if going and len(going) < len(self.active):
            for network in self.networks.all:
                network.cache.keep(going)
        self.active = [self.active[k] for k in going]

    def _progress(self) -> Progress:
        spans = []
        for row in self.rows:
            n = row.n_new
            if not row.is_done:  # the live block too
                n = min(row.start + self.engine.block_size - len(row.prompt), self.max_new_tokens)
            spans.append((len(row.prompt), len(row.prompt) + n))
        return Progress(self.networks.nfe, not self.active, self.text.clone(), spans)
