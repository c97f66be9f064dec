"""A batch of texts written by several ranks."""

from __future__ import annotations

from collections.abc import Sequence

from hybrid import counter
from hybrid.decoding.engine import Engine
from hybrid.decoding.results import Generation
from hybrid.ranks import Ranks


def generate_shared(engine: Engine, prompts: Sequence[Sequence[int]], max_new_tokens: int, ranks: Ranks) -> Generation:
    """`Engine.generate`, each rank a share of the prompts: the same texts on all ranks, whatever their number.

    `nfe` and `seconds` are those of the rank that took longest.
    """
    keys = counter.row_keys(prompts)
    share = ranks.share(len(prompts))
    # A rank without a prompt of its own helps to put a model together that is spread over the ranks.
    mine = share or range(min(1, len(prompts)))
    done = engine.generate([prompts[i] for i in mine], max_new_tokens, [keys[i] for i in mine])
    tokens, reasons, sequences = (
        ranks.interleave(values[: len(share)]) for values in (done.tokens, done.finish_reasons, done.sequences)
    )
    costs = ranks.gather((done.nfe, done.seconds))
    return Generation(tokens, max(nfe for nfe, _ in costs), max(seconds for _, seconds in costs), reasons, sequences)
