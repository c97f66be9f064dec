"""The block loop: prefill, denoise, commit, next block; ragged prompts, a cache, and randomness that keeps rows apart.

    prompt's full blocks -> per block: denoise (some forwards) -> commit (its clean keys and values) -> next block

What is to be committed rides in the first forward of the next block, the prompt like any finished block, so a block
costs its denoising forwards and no more. Rows step together, block iteration by block iteration, each at a block of its
own; a row that is done leaves the batch. `denoiser.py` runs the networks, `step.py` makes the view that a decoder gets.

Shape legend: r active rows, B block size.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hybrid import rng
from hybrid.arguments import SEEDS, flag, integer, prompt_ids
from hybrid.decoding import DECODERS
from hybrid.decoding.config import GenerationConfig
from hybrid.decoding.decoder import Decoder, Patience, check_decoder, choose, step_sizes
from hybrid.decoding.denoiser import LiveBlocks, Network, Row, document_of_slots
from hybrid.decoding.graphs import Replays
from hybrid.decoding.prompts import check_prompts, unknown_from
from hybrid.decoding.results import Change, Generation, GenerationState
from hybrid.decoding.sampling import Uniforms
from hybrid.decoding.step import Networks, Step
from hybrid.device import autocast_dtype, send
from hybrid.distributed import ALONE, Ranks
from hybrid.model import Transformer
from hybrid.model.block_pass import Sight
from hybrid.model.fused import for_inference
from hybrid.options import build, needs

BATCH = 64
"""Texts written at a time, which bounds the memory; no text depends on its batch, but on a GPU for rounding."""


@dataclass(frozen=True)
class Engine:
    """Generates from a model, block by block.

    Args:
        seq_len: the longest text (prompt and new tokens); blocks end there or at multiples of the block size. With
            `config.slide` texts may be longer: a block then sees the last tokens before it that fit into `seq_len` with
            it. Farther ones still act through what was computed from them, as in any sliding-window attention.
        config: its block size must be an integer, its planner a network of the same vocabulary.
        document_mask: tokens before the last end-of-text of a prompt are another document and unseen.
        precision: makes the context in which the networks run, e.g. an autocast.
        network: how a model reads the texts; another class only to compare it (hybrid/bench).

    Raises:
        ValueError: an unknown decoder or a wrong option of one, settings that it does not support, or a planner of
            another vocabulary.
    """

    model: Transformer
    seq_len: int
    config: GenerationConfig
    document_mask: bool = False
    precision: Callable[[], AbstractContextManager] = nullcontext
    network: type[Network] = Network
    block_size: int = field(init=False)
    decoder: Decoder = field(init=False)

    def __post_init__(self) -> None:
        config, planner = self.config, self.config.planner
        object.__setattr__(self, "block_size", integer("block_size", config.block_size, 1))
        object.__setattr__(self, "decoder", build(DECODERS, config.decoder, "decoder"))
        needs("decoder", self.decoder, "start", "select")
        flag("document_mask", self.document_mask)
        check_decoder(self.decoder, self.model.config, config)
        if config.graphs and not config.cache:
            warnings.warn(
                "graphs: without a cache forwards grow; those of more than two blocks run as usual", stacklevel=3
            )
        if planner is not None:
            if not isinstance(planner, Transformer):
                raise ValueError(f"planner: {planner!r} is no network; `LanguageModel.engine` takes a model or a path")
            sizes = [(m.vocab_size, m.end_of_text) for m in (self.model, planner)]
            if sizes[0] != sizes[1]:
                raise ValueError(
                    f"planner: its vocabulary (size, end of text) {sizes[1]} is not that of the model, {sizes[0]}; "
                    "take a model with the same tokenizer"
                )

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, row_keys: Sequence[int] | None = None
    ) -> Generation:
        """Run to the end.

        Raises:
            ValueError: as `stream`.
        """
        started = time.perf_counter()
        states = deque(self.stream(prompts, max_new_tokens, row_keys), maxlen=1)
        seconds = time.perf_counter() - started
        if not states:
            rows = prompt_ids(prompts)
            return Generation([[] for _ in rows], 0, seconds, ["length"] * len(rows), rows)
        (last,) = states
        return Generation(last.tokens, last.nfe, seconds, list(map(str, last.finish_reasons)), last.sequences)

    def stream(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, row_keys: Sequence[int] | None = None,
        watch: Callable[[int, Change], None] | None = None,
    ) -> Iterator[GenerationState]:  # fmt: skip
        """Yield the state after every step that revealed something. The weights must not change meanwhile.

        Args:
            prompts: token ids. MASK among them is a gap to be filled, see `prompts.py`.
            row_keys: what the randomness of each prompt is keyed by, for a part of a larger batch; None:
                `rng.row_keys(prompts)`.
            watch: is told after every step, for each unfinished prompt, its number and what changed.

        Raises:
            ValueError: a prompt that does not fit, ids that the vocabulary does not have, a decoder that is stuck.
        """
        slide = self.config.slide
        rows, n = check_prompts(self.model, prompts, max_new_tokens, self.block_size, self.seq_len, slide)
        keys = rng.row_keys(rows) if row_keys is None else [integer("row_keys", key, *SEEDS) for key in row_keys]
        if len(keys) != len(rows):
            raise ValueError(f"row_keys: {len(keys)} of them for {len(rows)} prompts; give one for each")
        if not any(n or self.model.mask_token_id in row for row in rows):
            return iter(())
        return _Session(self, rows, n, keys, watch).run()


def generate_shared(
    engine: Engine, prompts: Sequence[Sequence[int]], max_new_tokens: int, ranks: Ranks = ALONE, batch: int = BATCH
) -> Generation:
    """Generate as `Engine.generate`, each rank a share of the prompts and in batches; no text depends on either.

    `nfe` (of all batches together) and `seconds` are those of the rank that took longest.
    """
    row_keys = rng.row_keys(prompts)
    share = ranks.share(len(prompts))
    parts = []
    for start in range(0, n_batches(len(prompts), ranks, batch) * batch, batch):
        # A rank that has written all of its own helps to gather a model that is sharded over the ranks.
        mine = share[start : start + batch] or range(min(1, len(prompts)))
        done = engine.generate([prompts[i] for i in mine], max_new_tokens, [row_keys[i] for i in mine])
        parts.append((done, len(share[start : start + batch])))
    tokens, reasons, sequences = (
        ranks.interleave([value for done, n in parts for value in getattr(done, name)[:n]])
        for name in ("tokens", "finish_reasons", "sequences")
    )
    costs = ranks.gather((sum(done.nfe for done, _ in parts), sum(done.seconds for done, _ in parts)))
    return Generation(tokens, max(nfe for nfe, _ in costs), max(seconds for _, seconds in costs), reasons, sequences)


def n_batches(texts: int, ranks: Ranks = ALONE, batch: int = BATCH) -> int:
    """Return in how many batches `texts` are written: as many on every rank."""
    return -(-texts // (ranks.world * batch))


class _Session:
    """One generation: the texts, the networks that read them, and the loop over blocks."""

    def __init__(
        self, engine: Engine, prompts: list[list[int]], max_new_tokens: int, row_keys: Sequence[int],
        watch: Callable[[int, Change], None] | None,
    ):  # fmt: skip
        self.engine, self.mask, self.max_new_tokens = engine, engine.model.mask_token_id, max_new_tokens
        self.watch = watch
        B = engine.block_size
        longest = max(map(len, prompts)) + max_new_tokens
        width = -(-longest // B) * B  # the last block of a row may reach beyond what is wanted of it
        self.end = width if engine.config.slide else min(width, engine.seq_len)  # the last block ends here
        self.rows = [
            Row(i, prompt, key, unknown_from(prompt, self.mask) // B * B, self.end if max_new_tokens else len(prompt))
            for i, (prompt, key) in enumerate(zip(prompts, row_keys, strict=True))
        ]
        for row in self.rows:
            if not max_new_tokens and self.mask not in row.prompt:
                row.finish_reason = "length"
        self.active = [row for row in self.rows if row.finish_reason is None]
        text = torch.full((len(self.rows), width), self.mask, dtype=torch.long)
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
        self.uniforms = Uniforms(config.seed, B)

    def _fused(self, model: Transformer) -> Transformer:
        with self.engine.precision():
            return for_inference(model, autocast_dtype(model.embedding.weight))

    def _network(self, model: Transformer, sees_prompts: bool = True) -> Network:
        engine = self.engine
        n_slots = model.config.begin + self.end
        n = len(self.active)
        replays = Replays.take(model, n, n_slots) if engine.config.records(model.device) else None
        cache = model.new_cache(n, n_slots) if replays is None else replays.rows(n)
        documents = document_of_slots(self.rows, model, n_slots + 1) if engine.document_mask else None
        window = engine.seq_len if engine.config.slide else None
        sight = Sight(engine.block_size, documents, window)
        return engine.network(model, cache, sight, engine.config.cache, sees_prompts, replays)

    def run(self) -> Iterator[GenerationState]:
        engine = self.engine
        with closing(self.networks):
            while self.active:
                live = LiveBlocks(self.active, self.text, self.is_given, engine.block_size, self.end, self.mask)
                yield from self._denoise(live)
                self._advance(live)
                yield self._state()
        planner = self.networks.planner
        if planner is not None and not planner.nfe:
            warnings.warn(f"planner: {engine.decoder!r} asked for none; it had no effect", stacklevel=3)

    def _denoise(self, live: LiveBlocks) -> Iterator[GenerationState]:
        """Step until nothing of the live blocks is masked, and `min_steps` of the decoder are over."""
        engine, decoder = self.engine, self.engine.decoder
        state, step, patience = None, 0, Patience(decoder, engine.block_size)
        min_steps, sizes = getattr(decoder, "min_steps", 0), []
        while step < min_steps or live.n_masked:
            here = Step(self.networks, engine.config, self.uniforms, self.text, live, step)
            view = here.view()
            if step == 0:
                state = decoder.start(view)
                sizes = step_sizes(decoder, view, state)
            decision = here.decide(choose(decoder, view, state), step < min_steps, sizes)
            tokens, confidence = live.tokens, None
            if decision.n_revealed:
                tokens, confidence = here.revealed(view, decision)
            shown = tokens
            if decision.remask is not None:
                tokens = tokens.masked_fill(decision.remask, self.mask)
            if self.watch is not None:
                self._tell(live, confidence, shown, tokens)
            live.update(tokens, decision.n_masked)
            if step >= min_steps:
                patience.count(decision.n_new > 0, decision.remask is not None)
            step += 1
            if decision.n_revealed:
                self.text[live.index, live.position] = live.tokens
                yield self._state()

    def _tell(self, live: LiveBlocks, confidence: Callable[[], Tensor] | None, shown: Tensor, tokens: Tensor) -> None:
        """Tell who watches: `shown` is `live.tokens` with what was revealed, `tokens` without what was taken back."""
        assert self.watch is not None
        sure = torch.ones(shown.shape) if confidence is None else confidence()
        revealed = shown != live.tokens
        remasked = (shown != self.mask) & (tokens == self.mask)
        for k, row in enumerate(live.rows):
            columns = (live.position, shown, sure)
            new = list(zip(*(values[k][revealed[k]].tolist() for values in columns), strict=True))
            self.watch(row.index, Change(self.networks.nfe, new, live.position[k][remasked[k]].tolist()))

    def _advance(self, live: LiveBlocks) -> None:
        """Move every active row to its next block; rows that are done leave the caches."""
        ends = self.engine.model.end_token_ids
        for row, tokens in zip(self.active, live.tokens.tolist(), strict=True):
            first, end = max(row.start, len(row.prompt)), min(row.start + self.engine.block_size, self.end)
            new = tokens[first - row.start : end - row.start]
            row.start += self.engine.block_size
            row.n_new = max(min(end - len(row.prompt), self.max_new_tokens), 0)
            if end - len(row.prompt) >= self.max_new_tokens:
                row.finish_reason = "length"
            if self.engine.config.stop_at_end and not ends.isdisjoint(new):
                stop = first + next(i for i, token in enumerate(new) if token in ends) + 1 - len(row.prompt)
                row.n_new = min(stop, self.max_new_tokens)
                row.finish_reason = "end_of_text" if stop <= self.max_new_tokens else "length"
        going = [k for k, row in enumerate(self.active) if row.finish_reason is None]
        if going and len(going) < len(self.active):
            for network in self.networks.all:
                network.cache.keep(going)
        self.active = [self.active[k] for k in going]

    def _state(self) -> GenerationState:
        spans = []
        for row in self.rows:
            n = row.n_new
            if row.finish_reason is None:  # the live block too
                n = max(min(row.start + self.engine.block_size - len(row.prompt), self.max_new_tokens), 0)
            spans.append((len(row.prompt), len(row.prompt) + n))
        reasons = [row.finish_reason for row in self.rows]
        return GenerationState(self.networks.nfe, not self.active, self.text.clone(), spans, reasons)
