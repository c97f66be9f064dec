"""Texts written in batches, by one rank or several."""

from __future__ import annotations

from collections.abc import Sequence

from hybrid import rng
from hybrid.decoding.engine import Engine
from hybrid.decoding.results import Generation
from hybrid.distributed import ALONE, Ranks

BATCH = 64
"""Texts written at a time, which bounds the memory; no text depends on its batch."""


def generate_shared(
    engine: Engine, prompts: Sequence[Sequence[int]], max_new_tokens: int, ranks: Ranks = ALONE, batch: int = BATCH
) -> Generation:
    """`Engine.generate`, each rank a share of the prompts and in batches: the same texts, whatever the numbers of both.

    `nfe` (of all batches together) and `seconds` are those of the rank that took longest.
    """
    keys = rng.row_keys(prompts)
    share = ranks.share(len(prompts))
    parts = []
    for start in range(0, n_batches(len(prompts), ranks, batch) * batch, batch):
        # A rank that has written all of its own helps to put a model together that is spread over the ranks.
        mine = share[start : start + batch] or range(min(1, len(prompts)))
        done = engine.generate([prompts[i] for i in mine], max_new_tokens, [keys[i] for i in mine])
        parts.append((done, len(share[start : start + batch])))
    tokens, reasons, sequences = (
        ranks.interleave([value for done, n in parts for value in getattr(done, name)[:n]])
        for name in ("tokens", "finish_reasons", "sequences")
    )
    costs = ranks.gather((sum(done.nfe for done, _ in parts), sum(done.seconds for done, _ in parts)))
    return Generation(tokens, max(nfe for nfe, _ in costs), max(seconds for _, seconds in costs), reasons, sequences)


def n_batches(texts: int, ranks: Ranks = ALONE, batch: int = BATCH) -> int:
    """In which `texts` are written: as many on every rank."""
    return -(-texts // (ranks.world * batch))
