"""Decoders that write from the left by the autoregressive law of a network, off its clean rows.

Self-speculation: the masked law drafts, the autoregressive law of the same network checks, and what stands is its text.
A round is two forwards. The draft's has the last token written and MASK behind it: the next token is drawn exactly off
the clean row of that token, the draft off MASK. The check's has these tokens as clean rows, and each place up to the
first that does not stand gets its token (`acceptance.py`). Or it is one, which checks and drafts (`fused_rounds.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hybrid.arguments import flag, integer
from hybrid.decoding.acceptance import RULES
from hybrid.decoding.unmasking import MAX_COUNT
from hybrid.model.two_stream import reads_causally
from hybrid.options import option, pick

if TYPE_CHECKING:
    from hybrid.decoding.config import GenerationConfig
    from hybrid.decoding.session import Session, Watch
    from hybrid.model import ModelConfig


MAX_FUSED, FUSED = 16, 4
"""Tokens of a round of one forward, which has about their square of rows: at most, and where nobody says how many."""


@dataclass(frozen=True)
class Autoregressive:
    """A token a forward, off the clean row before it; of a `next_token` network the same as block size 1."""

    reads_causally: ClassVar[bool] = True
    reads_masks: ClassVar[bool] = False

    def loop(
        self, engine: Any, prompts: list[list[int]], max_new_tokens: int, row_keys: Sequence[int], watch: Watch | None
    ) -> Session:
        from hybrid.decoding.speculation import Speculation  # late, so that --help is quick

        return Speculation(engine, prompts, max_new_tokens, row_keys, watch, length=1)


@dataclass(frozen=True)
class Speculative:
    """Drafts by the masked law, checked by the autoregressive one: the text or the law of `autoregressive`, in fewer
    forwards."""

    reads_causally: ClassVar[bool] = True
    rule: str = option(
        "shared", "how a draft is drawn, and what of it stands (`shared` keeps more with noise=gumbel)", RULES
    )
    length: int | None = option(
        None,
        "tokens that a round writes at most, from 2 (of which two forwards draft none, of 3 one), with `fused` to "
        f"{MAX_FUSED}; null: the block size, with `fused` at most {FUSED}",
    )
    adapt: bool = option(False, "a text's draft grows where its last stood whole, up to `length`, and else shrinks")
    fused: bool = option(False, "a round is one forward, which checks a draft and makes one for each outcome")

    def __post_init__(self) -> None:
        pick("rule", self.rule, RULES)
        for name in ("adapt", "fused"):
            flag(name, getattr(self, name))
        if self.length is not None:
            integer("length", self.length, 2, MAX_COUNT, also=", or null for the block size")
        if self.fused and self.length is not None and self.length > MAX_FUSED:
            raise ValueError(
                f"length: {self.length} must be at most {MAX_FUSED} with fused=true, whose forward has length * "
                "(length + 1) rows of each text; take less, or leave fused out"
            )

    def loop(
        self, engine: Any, prompts: list[list[int]], max_new_tokens: int, row_keys: Sequence[int], watch: Watch | None
    ) -> Session:
        from hybrid.decoding.fused_rounds import FusedRounds
        from hybrid.decoding.speculation import Speculation

        length = self.length or (min(engine.block_size, FUSED) if self.fused else engine.block_size)
        length, loop = max(length, 2), FusedRounds if self.fused else Speculation
        return loop(engine, prompts, max_new_tokens, row_keys, watch, length, self.rule, self.adapt)


def warn_of_speculation(
    decoder: Any, config: GenerationConfig, model: ModelConfig, block_sizes: Sequence[int], ar_weight: float
) -> None:
    """Warn of a law that was not trained, and of noise by which `shared` keeps less than it could."""
    if reads_causally(model) and not ar_weight and not (model.begin and 1 in block_sizes):
        way_out = "objective.ar_weight" + (" or a block size of 1" if model.begin else "")
        warnings.warn(f"decoder: the autoregressive law was not trained; it is by {way_out}", stacklevel=3)
    if getattr(decoder, "rule", None) == "shared" and config.noise == "inverse" and config.temperature > 0:
        warnings.warn("noise: with rule=shared noise=gumbel (--noise gumbel) keeps more of a draft", stacklevel=3)
