"""The block loop: prefill, denoise, commit, next block; ragged prompts, a cache, and randomness that keeps rows apart.

    prompt's full blocks -> per block: denoise (some forwards) -> commit (its clean keys and values) -> next block

What is to be committed rides in the first forward of the next block, the prompt like any finished block, so a block
costs its denoising forwards and no more. Rows step together, block iteration by block iteration, each at a block of its
own; a row that is done leaves the batch. `denoiser.py` runs the networks, `step.py` makes the view that a decoder gets.

Shape legend: r active rows, B block size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hybrid.decoding.decoder import Patience, choose, step_sizes
from hybrid.decoding.denoiser import LiveBlocks, Row
from hybrid.decoding.results import Change, GenerationState
from hybrid.decoding.sampling import Uniforms
from hybrid.decoding.session import Session, Watch
from hybrid.decoding.step import Step


class BlockLoop(Session):
    """The loop over blocks."""

    def __init__(
        self, engine: Any, prompts: list[list[int]], max_new_tokens: int, row_keys: Sequence[int], watch: Watch | None
    ):
        super().__init__(engine, prompts, max_new_tokens, row_keys, watch, engine.block_size)
        self.uniforms = Uniforms(engine.config.seed, engine.block_size)

    def write(self) -> Iterator[GenerationState]:
        while self.active:
            live = LiveBlocks(self.active, self.text, self.is_given, self.block_size, self.end, self.mask)
            yield from self._denoise(live)
            self._advance(live)
            yield self.state()

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
                yield self.state()

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
        for row, tokens in zip(self.active, live.tokens.tolist(), strict=True):
            first, end = max(row.start, len(row.prompt)), min(row.start + self.block_size, self.end)
            self.finish(row, first, tokens[first - row.start : end - row.start], end)
            row.start += self.block_size
        self.drop_finished()

    def shown(self, row: Row) -> int:
        """Return the new tokens of the live block too."""
        return max(min(row.start + self.block_size - len(row.prompt), self.max_new_tokens), 0)
