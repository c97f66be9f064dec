"""The block loop: prefill, denoise, commit, next block; ragged prompts, a cache, and randomness that keeps rows apart.

    prompt's full blocks -> per block: denoise (some forwards) -> commit (its clean keys and values) -> next block

What is to be committed rides in the first forward of the next block, the prompt like any finished block, so a block
costs its denoising forwards and no more. Rows step together, block iteration by block iteration, each at a block of its
own; a row that is done leaves the batch. `network.py` runs the networks, `step.py` makes the view that a decoder gets.

Shape legend: r active rows, B block size.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hybrid import rng
from hybrid.arguments import SEEDS, flag, integer, number, prompt_ids
from hybrid.decoding.decoder import Decoder
from hybrid.decoding.denoiser import Live, Network, Row, document_of_slots
from hybrid.decoding.prompts import check_prompts, unknown_from
from hybrid.decoding.results import Change, Generation, Progress
from hybrid.decoding.sampling import Sampling
from hybrid.decoding.step import Networks, Step
from hybrid.decoding.uniforms import Uniforms
from hybrid.device import autocast_dtype
from hybrid.model import Transformer
from hybrid.model.block_pass import Sight
from hybrid.model.fused import for_inference

MAX_IDLE_STEPS = 10_000
"""Consecutive steps without a revealed token after which a decoder is taken to be stuck."""

MAX_GUIDANCE = 1000
"""Far beyond what makes sense; much larger ones lose all digits of the logits."""


@dataclass(frozen=True)
class Engine:
    """How to generate from a model, block by block.

    Args:
        seq_len: the longest text (prompt and new tokens); blocks end there or at multiples of `block_size`.
        cache: False recomputes everything at every forward: the same texts, slowly.
        stop_at_end: rows end at an end-of-text token.
        document_mask: tokens before the last end-of-text of a prompt are another document and unseen.
        precision: makes the context in which the networks run, e.g. an autocast.
        guidance: w (at most 1000) of (1 + w) log p(x | prompt) - w log p(x | prompt masked), normalised; above 0 a
            step has two forwards (while a row with a prompt is written); rows without a prompt stay as they are.
        planner: judges tokens for decoders that ask (`p2`); None: the model itself does. Of the same vocabulary.
        slide: texts may be longer than `seq_len`; a block then sees the last tokens before it that fit into `seq_len`
            with it. Farther ones still act through what was computed from them, as in any sliding-window attention.
        network: how a model reads the texts; another class only to compare it (hybrid/bench).

    Raises:
        ValueError: an argument of the wrong kind or out of range, or a planner of another vocabulary.
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
        # An integer of numpy or torch becomes one of Python.
        object.__setattr__(self, "seed", integer("seed", self.seed, *SEEDS))
        object.__setattr__(self, "block_size", integer("block_size", self.block_size, 1))
        for name in ("cache", "stop_at_end", "document_mask", "slide"):
            flag(name, getattr(self, name))
        allowed = f"a finite number of at least 0 (no guidance) and at most {MAX_GUIDANCE}"
        number("guidance", self.guidance, lambda w: 0 <= w <= MAX_GUIDANCE, allowed)
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
        seconds = time.perf_counter() - started
        if not steps:
            rows = prompt_ids(prompts)
            return Generation([[] for _ in rows], 0, seconds, ["length"] * len(rows), rows)
        (last,) = steps
        return Generation(last.tokens, last.nfe, seconds, list(map(str, last.finish_reasons)), last.sequences)

    def stream(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, keys: Sequence[int] | None = None,
        watch: Callable[[int, Change], None] | None = None,
    ) -> Iterator[Progress]:  # fmt: skip
        """An iterator that yields after every step that revealed something. The weights must not change meanwhile.

        Args:
            prompts: token ids. MASK among them is a gap to be filled, see `prompts.py`.
            keys: of the prompts' randomness, for a part of a larger batch; None: `rng.row_keys(prompts)`.
            watch: is told after every step, for each unfinished prompt, its number and what changed.

        Raises:
            ValueError: a prompt that does not fit, ids that the vocabulary does not have, a decoder that is stuck.
        """
        rows, n = check_prompts(self.model, prompts, max_new_tokens, self.block_size, self.seq_len, self.slide)
        keys = rng.row_keys(rows) if keys is None else [integer("keys", key, *SEEDS) for key in keys]
        if len(keys) != len(rows):
            raise ValueError(f"keys: {len(keys)} keys for {len(rows)} prompts; give one for each")
        if not any(n or self.model.mask_token_id in row for row in rows):
            return iter(())
        return _Session(self, rows, n, keys, watch).run()


class _Session:
    """One generation: the texts, the networks that read them, and the loop over blocks."""

    def __init__(
        self, engine: Engine, prompts: list[list[int]], max_new_tokens: int, keys: Sequence[int],
        watch: Callable[[int, Change], None] | None,
    ):  # fmt: skip
        self.engine, self.mask, self.max_new_tokens = engine, engine.model.mask_token_id, max_new_tokens
        self.watch = watch
        B = engine.block_size
        pairs = enumerate(zip(prompts, keys, strict=True))
        self.rows = [Row(i, prompt, key, unknown_from(prompt, self.mask) // B * B) for i, (prompt, key) in pairs]
        self.active = [row for row in self.rows if max_new_tokens or self.mask in row.prompt]
        longest = max(len(row.prompt) for row in self.rows) + max_new_tokens
        width = -(-longest // B) * B  # the last block of a row may reach beyond what is wanted of it
        text = torch.full((len(self.rows), width), self.mask, dtype=torch.long)
        for row in self.rows:
            text[row.index, : len(row.prompt)] = torch.tensor(row.prompt, dtype=torch.long)
        self.text = text.to(engine.model.embedding.weight.device)
        self.is_given = self.text != self.mask
        self.end = width if engine.slide else min(width, engine.seq_len)  # the last block ends here
        denoiser = self._fused(engine.model)
        self.networks = Networks(
            denoiser=self._network(denoiser),
            without_prompt=self._network(denoiser, sees_prompts=False) if engine.guidance else None,
            planner=None if engine.planner is None else self._network(self._fused(engine.planner)),
            guidance=engine.guidance,
        )
        self.uniforms = {purpose: Uniforms(engine.seed, purpose, B) for purpose in (rng.TOKEN, rng.DECIDE)}

    def _fused(self, model: Transformer) -> Transformer:
        with self.engine.precision():
            return for_inference(model, autocast_dtype(model.embedding.weight))

    def _network(self, model: Transformer, sees_prompts: bool = True) -> Network:
        engine = self.engine
        n_slots = model.config.begin + self.end
        cache = model.new_cache(len(self.active), n_slots)
        documents = document_of_slots(self.rows, model, n_slots + 1) if engine.document_mask else None
        window = engine.seq_len if engine.slide else None
        sight = Sight(engine.block_size, documents, window)
        return engine.network(model, cache, sight, engine.cache, sees_prompts)

    def run(self) -> Iterator[Progress]:
        engine = self.engine
        while self.active:
            live = Live(self.active, self.text, self.is_given, engine.block_size, self.end, self.mask)
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
            changed, confidence = bool(reveal.any()), None
            tokens = live.tokens
            if changed:
                tokens, confidence = here.reveal(view, reveal & live.is_masked)
            shown = tokens
            if remask is not None:
                if step >= min_steps:  # a finished row stays as it is, in whatever company
                    remask = remask & live.is_masked.any(-1, keepdim=True)
                tokens = tokens.masked_fill(remask & ~live.is_fixed & live.is_valid, self.mask)
            if self.watch is not None:
                self._tell(live, confidence, shown, tokens)
            live.update(tokens)
            idle = 0 if changed or step < min_steps else idle + 1
            if idle > MAX_IDLE_STEPS:
                raise ValueError(f"decoder: {decoder!r} revealed nothing in {idle} steps; select must make progress")
            step += 1
            if changed:
                self.text[live.index, live.position] = live.tokens
                yield self._progress()

    def _tell(self, live: Live, confidence: Callable[[], Tensor] | None, shown: Tensor, tokens: Tensor) -> None:
        """Tell who watches: `shown` is `live.tokens` with what was revealed, `tokens` without what was taken back."""
        assert self.watch is not None
        sure = torch.ones(shown.shape) if confidence is None else confidence()
        revealed = (live.tokens == self.mask) & (shown != self.mask)
        remasked = (shown != self.mask) & (tokens == self.mask)
        for k, row in enumerate(live.rows):
            columns = (live.position, shown, sure)
            new = list(zip(*(values[k][revealed[k]].tolist() for values in columns), strict=True))
            self.watch(row.index, Change(self.networks.nfe, new, live.position[k][remasked[k]].tolist()))

    def _advance(self, live: Live) -> None:
        """Move every active row to its next block; rows that are done leave the caches."""
        end_of_text = self.engine.model.end_of_text
        for row, tokens in zip(self.active, live.tokens.tolist(), strict=True):
            first, end = max(row.start, len(row.prompt)), min(row.start + self.engine.block_size, self.end)
            new = tokens[first - row.start : end - row.start]
            row.start += self.engine.block_size
            row.n_new = max(min(end - len(row.prompt), self.max_new_tokens), 0)
            if end - len(row.prompt) >= self.max_new_tokens:
                row.finish_reason = "length"
            if self.engine.stop_at_end and end_of_text in new:
                stop = first + new.index(end_of_text) + 1 - len(row.prompt)
                row.n_new = min(stop, self.max_new_tokens)
                row.finish_reason = "end_of_text" if stop <= self.max_new_tokens else "length"
        going = [k for k, row in enumerate(self.active) if row.finish_reason is None]
        if going and len(going) < len(self.active):
            for network in self.networks.all:
                network.cache.keep(going)
        self.active = [self.active[k] for k in going]

    def _progress(self) -> Progress:
        spans = []
        for row in self.rows:
            n = row.n_new
            if row.finish_reason is None:  # the live block too
                n = max(min(row.start + self.engine.block_size - len(row.prompt), self.max_new_tokens), 0)
            spans.append((len(row.prompt), len(row.prompt) + n))
        reasons = [row.finish_reason for row in self.rows]
        return Progress(self.networks.nfe, not self.active, self.text.clone(), spans, reasons)
