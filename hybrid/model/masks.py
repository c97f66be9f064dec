"""Decide who may attend to whom.

Training reads two streams of the same text: **clean** `x`, and **noisy** `x` in which some tokens are MASK. Generation
reads finished (clean) blocks from a cache and one live (noisy) block. One predicate, `may_attend`, says what both are;
every backend is tested against it.

Shape legend: b batch, q query rows, k key rows, N text length, B block size, D noise draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Coordinates:
    """Coordinates of rows. All tensors broadcast against each other; `document` may be None (one document)."""

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
    """Say who may attend to whom, as one boolean expression.

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


@dataclass(frozen=True)
class TwoStreamRows:
    """Rows of a training pass, `[clean ; noisy draw 0 ; noisy draw 1 ; ...]`, and which of them are read.

    Streams hold what somebody reads and no more: nobody reads the clean last block, so the clean stream ends before it
    (`in_place` at B = N has none), and `next_token` at B = 1 reads only clean rows, so it has no noisy stream.

    `autoregressive` reads all clean rows, each of which predicts the token behind it from those up to itself
    (`context: causal`). A first token has no row before it: `next_token` has its begin token, `in_place` gets one more
    row, a MASK that stands alone. Since that sees nothing it is the same row for every document.
    """

    length: int  # N
    block_size: int  # B
    prediction: str = "in_place"
    draws: int = 1  # D
    autoregressive: bool = False

    @property
    def begin(self) -> int:
        """1 if a begin token stands before the text, else 0; text token l has rotary position begin + l."""
        return int(self.prediction == "next_token")

    @property
    def n_clean(self) -> int:
        n_blocks = -(-self.length // self.block_size)
        return self.begin + (self.length - 1 if self.autoregressive else (n_blocks - 1) * self.block_size)

    @property
    def noisy_streams(self) -> list[tuple[int, int]]:
        """(length, block size) of each noisy stream."""
        streams = [] if self.begin and self.block_size == 1 else [(self.length, self.block_size)] * self.draws
        return [*streams, (1, 1)] if self.autoregressive and not self.begin else streams

    @property
    def n_noisy(self) -> int:
        return sum(length for length, _ in self.noisy_streams)

    @property
    def clean_read(self) -> slice:
        """The clean rows that are read: `next_token` reads the first token of each block off the row before it."""
        if self.autoregressive:
            return slice(0, self.n_clean)
        return slice(0, self.n_clean, self.block_size) if self.begin else slice(0, 0)

    @property
    def n_clean_read(self) -> int:
        return len(range(*self.clean_read.indices(self.n_clean)))

    def positions(self, device: torch.device | str = "cpu") -> Tensor:
        """(1, n_clean + n_noisy): rotary positions."""
        text = torch.arange(self.begin, self.begin + self.length, device=device)
        clean = torch.arange(self.n_clean, device=device)
        return torch.cat([clean, *(text[:length] for length, _ in self.noisy_streams)])[None]

    def coordinates(self, device: torch.device | str = "cpu", documents: Tensor | None = None) -> Coordinates:
        """Return the coordinates of all rows, (1, n_clean + n_noisy) each.

        Args:
            documents: (b, begin + N), the document of each token of the text, seen as input.
        """
        clean = torch.arange(self.n_clean, device=device) - self.begin
        noisy = [(torch.arange(length, device=device), size) for length, size in self.noisy_streams]
        position = torch.cat([clean, *(text for text, _ in noisy)])
        start = torch.cat([clean // self.block_size * self.block_size, *(text // size * size for text, size in noisy)])
        start = torch.where(position < 0, position, start)
        draw = torch.cat([torch.full_like(clean, -1), *(torch.full_like(text, i) for i, (text, _) in enumerate(noisy))])
        document = None
        if documents is not None:
            texts = [documents[:, self.begin :][:, :length] for length, _ in self.noisy_streams]
            document = torch.cat([documents[:, : self.n_clean], *texts], dim=1)
        return Coordinates(position[None], start[None], draw[None], document)

    def read_masked(self, masked: Tensor) -> Tensor:
        """Find the rows that predict the tokens that are True in `masked` (b, D, N): flat indices into those that are
        read, `[clean_read ; noisy]` of all texts, in the order of `masked.nonzero()`."""
        row, draw, position = masked.nonzero(as_tuple=True)
        n_read = self.n_clean_read + self.n_noisy
        if not self.begin:
            return row * n_read + self.n_clean_read + draw * self.length + position
        block, offset = position // self.block_size, position % self.block_size
        clean = position if self.autoregressive else block
        noisy = self.n_clean_read + draw * self.length + position - 1
        return row * n_read + torch.where(offset == 0, clean, noisy)

    def read_autoregressive(self, is_target: Tensor, is_first: Tensor) -> Tensor:
        """Find the rows that predict the tokens that are True in `is_target` (b, N), each from those before it; there
        are none before those that `is_first` (b, N)."""
        row, position = is_target.nonzero(as_tuple=True)
        n_read = self.n_clean_read + self.n_noisy
        if self.begin:
            return row * n_read + position
        return row * n_read + torch.where(is_first[is_target], n_read - 1, position - 1)


@dataclass(frozen=True, eq=False)
class TwoStream:
    """Pattern of a training pass: who of `rows` attends to whom.

    In the last layer (`only_read`) queries are computed only for rows that a prediction is read from; all others only
    serve keys and values there.
    """

    rows: TwoStreamRows
    context: str = "block_causal"
    documents: Tensor | None = None  # (b, begin + N): document of each text token, seen as input
    device: torch.device | str = "cpu"
    only_read: bool = False

    @classmethod
    def of(
        cls, length: int, block_size: int, context: str = "block_causal", prediction: str = "in_place", draws: int = 1,
        documents: Tensor | None = None, autoregressive: bool = False, device: torch.device | str = "cpu",
    ) -> TwoStream:  # fmt: skip
        """Make the pattern over the rows that these sizes have."""
        return cls(TwoStreamRows(length, block_size, prediction, draws, autoregressive), context, documents, device)

    @property
    def clean_queries(self) -> slice:
        """Which clean rows have queries."""
        return self.rows.clean_read if self.only_read else slice(0, self.rows.n_clean)

    @property
    def n_clean_queries(self) -> int:
        return self.rows.n_clean_read if self.only_read else self.rows.n_clean

    @property
    def is_causal(self) -> bool:
        """Whether this is an ordinary causal pass: each row sees the rows up to itself."""
        causal = self.context == "causal" or self.rows.block_size == 1
        every_row_asks = self.n_clean_queries == self.rows.n_clean
        return self.rows.n_noisy == 0 and causal and every_row_asks and self.documents is None

    @property
    def is_full(self) -> bool:
        """Whether every row sees every row: one block, one draw, nothing before it."""
        rows = self.rows
        return rows.n_clean == 0 and rows.noisy_streams == [(rows.length, rows.block_size)] and self.documents is None

    def reading(self) -> TwoStream:
        """Return the same pattern with queries of only those rows that predictions are read from."""
        return replace(self, only_read=True)

    def select_queries(self, rows: Tensor) -> Tensor:
        """Select the rows that have queries: (b, n_clean + n_noisy, ...) -> (b, q, ...)."""
        if not self.only_read:
            return rows
        noisy = rows[:, self.rows.n_clean :]
        return torch.cat([rows[:, self.clean_queries], noisy], dim=1) if self.n_clean_queries else noisy

    @cached_property
    def positions(self) -> Tensor:
        """(1, n_clean + n_noisy): rotary positions, below `n_positions`."""
        return self.rows.positions(self.device)

    @property
    def n_positions(self) -> int:
        return self.rows.begin + self.rows.length

    @cached_property
    def keys(self) -> Coordinates:
        return self.rows.coordinates(self.device, self.documents)

    @cached_property
    def queries(self) -> Coordinates:
        return self.keys.map(self.select_queries)

    def dense(self) -> Tensor:
        """Return the dense mask, (1 or b, q, k) booleans, made once for all layers."""
        return self._dense

    @cached_property
    def _dense(self) -> Tensor:
        return may_attend(self.queries.as_queries(), self.keys.as_keys(), self.context)


@dataclass(frozen=True, eq=False)
class Cached:
    """Pattern of a generation forward, of rows `[pending clean ; live noisy]`.

    Finished blocks, those being committed and the live block stand in slot order, so a row sees a range of slots, up to
    its own block's end (`block_causal`, live rows) or itself (`causal` clean rows), from the first or a window's first.
    """

    slots: slice | Tensor  # where the rows' keys and values go, (b, r) or the same slice for all; slots are positions
    n_slots: int  # of the cache
    visible_end: Tensor  # (1 or b, r): the slot behind the last visible one
    span: slice  # slots that anybody sees
    unmasked: bool = False  # every row sees all of `span`: no mask is needed
    visible_start: Tensor | None = None  # (1 or b, r): the first visible slot
    query_document: Tensor | None = None  # (b, r)
    slot_document: Tensor | None = None  # (b, slots)
    first_query: int = 0  # rows before it only serve keys and values in the last layer
    only_read: bool = False

    @property
    def positions(self) -> slice | Tensor:
        return self.slots

    @property
    def n_positions(self) -> int:
        return self.n_slots

    @cached_property
    def flat_slots(self) -> Tensor:
        """(b * r,): where the rows' keys and values go in the memory of all texts, `slots` being a tensor."""
        assert isinstance(self.slots, Tensor)
        first = torch.arange(0, self.slots.shape[0] * self.n_slots, self.n_slots, device=self.slots.device)
        return (self.slots + first[:, None]).flatten()

    def reading(self) -> Cached:
        return replace(self, only_read=True) if self.first_query else self

    def select_queries(self, rows: Tensor) -> Tensor:
        return rows[:, self.first_query :] if self.only_read else rows

    def dense(self) -> Tensor:
        """Return the dense mask, (1 or b, q, span) booleans, made once for all layers."""
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
