"""The engine: what is asked for is checked, and written by a loop, `block_loop.py` or that of the decoder."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from hybrid import rng
from hybrid.arguments import SEEDS, flag, integer, prompt_ids
from hybrid.decoding import DECODERS
from hybrid.decoding.block_loop import BlockLoop
from hybrid.decoding.config import GenerationConfig
from hybrid.decoding.decoder import Decoder, check_decoder, has_own_loop, name_of
from hybrid.decoding.denoiser import Network
from hybrid.decoding.prompts import check_no_gap, check_prompts
from hybrid.decoding.results import Change, Generation, GenerationState, added
from hybrid.distributed import ALONE, Ranks
from hybrid.model import Transformer
from hybrid.model.two_stream import reads_causally
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
        if not has_own_loop(self.decoder):
            needs("decoder", self.decoder, "start", "select")
        flag("document_mask", self.document_mask)
        config.check_latent(self.model.config.latent)
        check_decoder(self.decoder, self.model.config, config)
        if config.latent != "fresh" and (self._is_from_the_left or not getattr(self.decoder, "reads_masks", True)):
            warnings.warn(
                f"latent: {config.latent!r} has no effect, since nothing is read off a MASK: block_size = "
                f"{self.block_size}, decoder {self.decoder!r}", stacklevel=3,
            )  # fmt: skip
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

    @property
    def law(self) -> str:
        """What a token follows: `autoregressive`, off the clean row before it, or `blocks of B`, off a MASK."""
        if self._is_from_the_left or (has_own_loop(self.decoder) and getattr(self.decoder, "reads_causally", False)):
            return "autoregressive"
        return f"blocks of {self.block_size}"

    @property
    def _is_from_the_left(self) -> bool:
        """Whether blocks are read off clean rows alone."""
        return self.block_size == 1 and bool(self.model.config.begin)

    @property
    def law_of_two(self) -> str:
        """`law`, of a network that has both; of others, which need not say it, nothing."""
        return self.law if reads_causally(self.model.config) else ""

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
            return Generation([[] for _ in rows], 0, seconds, ["length"] * len(rows), rows, law=self.law)
        (last,) = states
        reasons = list(map(str, last.finish_reasons))
        return Generation(last.tokens, last.nfe, seconds, reasons, last.sequences, list(last.kept), self.law)

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
        slide, loop = self.config.slide, getattr(self.decoder, "loop", BlockLoop)
        size = self.block_size
        if has_own_loop(self.decoder):
            size = 1  # it writes from the left
            check_no_gap(prompt_ids(prompts), self.model.mask_token_id, name_of(self.config.decoder))
        rows, n = check_prompts(self.model, prompts, max_new_tokens, size, self.seq_len, slide)
        keys = rng.row_keys(rows) if row_keys is None else [integer("row_keys", key, *SEEDS) for key in row_keys]
        if len(keys) != len(rows):
            raise ValueError(f"row_keys: {len(keys)} of them for {len(rows)} prompts; give one for each")
        if not any(n or self.model.mask_token_id in row for row in rows):
            return iter(())
        return loop(self, rows, n, keys, watch).run()


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
    kept = added(ranks.gather(added(done.kept for done, _ in parts)))
    nfe, seconds = (max(values) for values in zip(*costs, strict=True))
    return Generation(tokens, nfe, seconds, reasons, sequences, kept, engine.law)


def n_batches(texts: int, ranks: Ranks = ALONE, batch: int = BATCH) -> int:
    """Return in how many batches `texts` are written: as many on every rank."""
    return -(-texts // (ranks.world * batch))
