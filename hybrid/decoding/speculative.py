"""Decoders that write from the left by the autoregressive law of a network, off its clean rows.

Self-speculation: the masked law drafts, the autoregressive law of the same network checks, and what stands is its text.
A round is two forwards. The draft's has the last token written and MASK behind it: the next token is drawn exactly off
the clean row of that token, the draft off MASK. The check's has these tokens as clean rows, and each place up to the
first that does not stand gets its token (`acceptance.py`). Or it is one, which checks and drafts (`fused_rounds.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hybrid.arguments import flag, integer
from hybrid.decoding.acceptance import RULES
from hybrid.decoding.unmasking import MAX_COUNT
from hybrid.options import option, pick

if TYPE_CHECKING:
    from hybrid.decoding.session import Session, Watch


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
    rule: str = option("shared", "how a draft is drawn, and what of it stands", RULES)
    length: int | None = option(None, "tokens that a round writes at most, from 2; null: the block size")
    adapt: bool = option(False, "a text's draft grows where its last stood whole, up to `length`, and else shrinks")
    fused: bool = option(False, "a round is one forward, which checks a draft and makes one for each outcome")

    def __post_init__(self) -> None:
        pick("rule", self.rule, RULES)
        for name in ("adapt", "fused"):
            flag(name, getattr(self, name))
        if self.length is not None:
            integer("length", self.length, 2, MAX_COUNT, also=", or null for the block size")

    def loop(
        self, engine: Any, prompts: list[list[int]], max_new_tokens: int, row_keys: Sequence[int], watch: Watch | None
    ) -> Session:
        from hybrid.decoding.fused_rounds import FusedRounds
        from hybrid.decoding.speculation import Speculation

        length, loop = max(self.length or engine.block_size, 2), FusedRounds if self.fused else Speculation
        return loop(engine, prompts, max_new_tokens, row_keys, watch, length, self.rule, self.adapt)
