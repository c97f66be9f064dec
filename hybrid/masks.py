"""Who may attend to whom.

Training reads two streams of the same text: **clean** `x`, and **noisy** `x` in which some tokens are MASK. Generation
reads finished (clean) blocks from a cache and one live (noisy) block. One predicate, `may_attend`, says what both are;
every backend is tested against it.

Shape legend: b batch, q query rows, k key rows, N text length, B block size, D noise draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Coordinates:
    """Where rows stand. All tensors broadcast against each other; `document` may be None (one document)."""

    position: Tensor  # text position; the begin token is at -1, a block of its own
    start: Tensor  # position of the first token of its block
    draw: Tensor  # -1: clean stream; 0, 1, ...: noisy stream of that noise draw
    document: Tensor | None = None

    def as_queries(self) -> Coordinates:
        """Coordinates that broadcast along a new key axis."""
        return self.map(lambda t: t[..., :, None])

    def as_keys(self) -> Coordinates:
        """Coordinates that broadcast along a new query axis."""
        return self.map(lambda t: t[..., None, :])

    def map(self, f: Callable[[Tensor], Tensor]) -> Coordinates:
        """Apply `f` to every tensor."""
        document = None if self.document is None else f(self.document)
        return Coordinates(f(self.position), f(self.start), f(self.draw), document)


def may_attend(query: Coordinates, key: Coordinates, context: str) -> Tensor:
    """The table of the design, as one boolean expression.

    | query   | may attend to                                                                      |
    |---------|------------------------------------------------------------------------------------|
    | clean l | clean k with block(k) <= block(l) (`block_causal`), or k <= l (`causal`)           |
    | noisy l | clean k with block(k) < block(l); noisy k of its own block and its own noise draw  |

    Rows of different documents never see each other. Streams may be cut into blocks of different sizes, so what a noisy
    row sees of the clean stream is what stands before its own block.
    """
    if context == "causal":
        clean_sees = key.position <= query.position
    else:
        clean_sees = key.start <= query.start
    key_is_clean = key.draw < 0
    noisy_sees = torch.where(
        key_is_clean, key.position < query.start, (key.start == query.start) & (key.draw == query.draw)
    )
    allowed = torch.where(query.draw < 0, key_is_clean & clean_sees, noisy_sees)
    if query.document is not None and key.document is not None:
        allowed = allowed & (query.document == key.document)
    return allowed


@dataclass(frozen=True, eq=False)
class TwoStream:
    """The pattern of a training pass over rows `[clean ; noisy draw 0 ; noisy draw 1 ; ...]`.

    Streams hold what somebody reads and no more: nobody reads the clean last block, so the clean stream ends before it
    (`in_place` at B = N has none), and `next_token` at B = 1 reads only clean rows, so it has no noisy stream.

    `autoregressive` adds what predicts every token from those before it alone: of `next_token` all clean rows are read,
    `in_place` gets one more noisy stream, at block size 1. It needs `context: causal`.
    """

    length: int  # N
    block_size: int  # B
    context: str = "block_causal"
    prediction: str = "in_place"
    draws: int = 1  # D
    documents: Tensor | None = None  # (b, begin + N): document of each text token, seen as input
    device: torch.device | str = "cpu"
    autoregressive: bool = False
    only_read: bool = False  # queries are just the rows that a prediction is read from (the last layer)
    derived: dict[Any, Any] = field(default_factory=dict, repr=False)  # what a backend made of this pattern

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for equal patterns, documents apart; what a backend makes of the pattern is kept under it."""
        return (
            self.length,
            self.block_size,
            self.context,
            self.prediction,
            self.draws,
            self.autoregressive,
            self.only_read,
            str(self.device),
        )

    @property
    def begin(self) -> int:
        """1 if a begin token stands before the text, else 0; text token l has rotary position begin + l."""
        return int(self.prediction == "next_token")

    @property
    def n_blocks(self) -> int:
        return -(-self.length // self.block_size)

    @property
    def n_clean(self) -> int:
        return self.begin + (self.length - 1 if self.autoregressive else (self.n_blocks - 1) * self.block_size)

    @property
    def noisy_block_sizes(self) -> list[int]:
        """The block size of each noisy stream."""
        if self.prediction == "next_token":
            return [] if self.block_size == 1 else [self.block_size] * self.draws
        return [self.block_size] * self.draws + [1] * self.autoregressive

    @property
    def n_noisy(self) -> int:
        return len(self.noisy_block_sizes) * self.length

    @property
    def clean_queries(self) -> slice:
        """Which clean rows ask. `next_token` reads the first token of each block off the clean row before it."""
        if not self.only_read or (self.begin and self.autoregressive):
            return slice(0, self.n_clean)
        return slice(0, self.n_clean, self.block_size) if self.begin else slice(0, 0)

    @property
    def n_clean_queries(self) -> int:
        return len(range(*self.clean_queries.indices(self.n_clean)))

    @property
    def is_causal(self) -> bool:
        """Whether this is an ordinary causal pass: each row sees the rows up to itself."""
        causal = self.context == "causal" or self.block_size == 1
        every_row_asks = self.n_clean_queries == self.n_clean
        return self.n_noisy == 0 and causal and every_row_asks and self.documents is None

    @property
    def is_full(self) -> bool:
        """Whether every row sees every row: one block, one draw, nothing before it."""
        return self.n_clean == 0 and self.noisy_block_sizes == [self.block_size] and self.documents is None

    def reading(self) -> TwoStream:
        """The same pattern with only the rows as queries that predictions are read from."""
        return replace(self, only_read=True, derived={})

    def select_queries(self, rows: Tensor) -> Tensor:
        """`rows` (b, n_clean + n_noisy, ...) -> (b, q, ...), the rows that ask."""
        if not self.only_read:
            return rows
        noisy = rows[:, self.n_clean :]
        return torch.cat([rows[:, self.clean_queries], noisy], dim=1) if self.begin else noisy

    def read_rows(self, masked: Tensor) -> Tensor:
        """Flat indices into (b, q) of `reading()`, from which the tokens that are True in `masked` (b, D, N) are read.

        The order is that of `masked.nonzero()`.
        """
        row, draw, position = masked.nonzero(as_tuple=True)
        n_queries = self.reading().n_clean_queries + self.n_noisy
        if not self.begin:
            return row * n_queries + draw * self.length + position
        block, offset = position // self.block_size, position % self.block_size
        clean = position if self.autoregressive else block
        noisy = self.reading().n_clean_queries + draw * self.length + position - 1
        return row * n_queries + torch.where(offset == 0, clean, noisy)

    def autoregressive_rows(self, is_target: Tensor) -> Tensor:
        """Flat indices into (b, q) of `reading()`, from which the tokens True in `is_target` (b, N) are read, each
        given those before it."""
        row, position = is_target.nonzero(as_tuple=True)
        n_clean = self.reading().n_clean_queries
        first = 0 if self.begin else n_clean + self.draws * self.length
        return row * (n_clean + self.n_noisy) + first + position

    @cached_property
    def positions(self) -> Tensor:
        """(1, n_clean + n_noisy): rotary positions."""
        text = torch.arange(self.begin, self.begin + self.length, device=self.device)
        return torch.cat([torch.arange(self.n_clean, device=self.device), text.repeat(self.n_noisy // self.length)])[
            None
        ]

    @cached_property
    def keys(self) -> Coordinates:
        clean = torch.arange(self.n_clean, device=self.device) - self.begin
        text = torch.arange(self.length, device=self.device)
        sizes = self.noisy_block_sizes
        position = torch.cat([clean, *(text for _ in sizes)])
        start = torch.cat([clean // self.block_size * self.block_size, *(text // size * size for size in sizes)])
        start = torch.where(position < 0, position, start)
        draw = torch.cat([torch.full_like(clean, -1), *(torch.full_like(text, i) for i in range(len(sizes)))])
        document = None
        if self.documents is not None:
            noisy = self.documents[:, self.begin :].repeat(1, len(sizes))
            document = torch.cat([self.documents[:, : self.n_clean], noisy], dim=1)
        return Coordinates(position[None], start[None], draw[None], document)

    @cached_property
    def queries(self) -> Coordinates:
        return self.keys.map(self.select_queries)

    def dense(self) -> Tensor:
        """(1 or b, q, k) booleans, made once for all layers."""
        if "dense" not in self.derived:
            self.derived["dense"] = may_attend(self.queries.as_queries(), self.keys.as_keys(), self.context)
        return self.derived["dense"]


@dataclass(frozen=True, eq=False)
class Cached:
    """The pattern of a generation forward: each row of `[pending clean ; live noisy]` sees the slots up to its end.

    Finished blocks, the blocks being committed and the live block stand in slot order, so what a row may see is a
    range of the slots, up to its own block's end (`block_causal` and live rows) or itself (`causal` clean rows). It
    begins with the first slot, or where a window begins that slides along with the text.
    """

    visible_end: Tensor  # (1 or b, q): the slot behind the last visible one
    span: slice  # slots that anybody sees
    unmasked: bool = False  # every row sees all of `span`: no mask is needed
    visible_start: Tensor | None = None  # (1 or b, q): the first visible slot
    query_document: Tensor | None = None  # (b, q)
    slot_document: Tensor | None = None  # (b, slots)
    first_query: int = 0  # rows before it only serve keys and values in the last layer
    only_read: bool = False

    def reading(self) -> Cached:
        return replace(self, only_read=True) if self.first_query else self

    def select_queries(self, rows: Tensor) -> Tensor:
        return rows[:, self.first_query :] if self.only_read else rows

    def dense(self) -> Tensor:
        """(1 or b, q, span) booleans, made once for all layers."""
        return self._dense

    @cached_property
    def _dense(self) -> Tensor:
        slots = torch.arange(self.span.start, self.span.stop, device=self.visible_end.device)
        allowed = slots < self.select_queries(self.visible_end)[..., None]
        if self.visible_start is not None:
            allowed = allowed & (slots >= self.select_queries(self.visible_start)[..., None])
        if self.query_document is not None and self.slot_document is not None:
            same = self.select_queries(self.query_document)[..., None] == self.slot_document[:, None, self.span]
            allowed = allowed & same
        return allowed


Pattern = TwoStream | Cached
