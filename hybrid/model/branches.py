"""Rows in branches: one forward reads a draft and, behind each of its tokens, MASKs for the case that no more stands.

    clean rows   t d1 d2            the last token that stands, and a draft
    branch 0       M M M            behind t
    branch 1         M M M          behind d1
    branch 2           M M M        behind d2

Clean rows are causal, as ever. A branch sees the clean rows before it, and itself: attention over a tree, in the layout
of TiDAR (2511.08923). For `may_attend` branch k is a noise draw, and a block that begins behind k tokens of the draft.
Branches stand at the same positions, so their slots are no positions: they lie behind the clean rows, one after the
other, where the next forward writes over them.

Shape legend: b texts of the batch, r rows of a forward, n branches, m MASKs of a branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from hybrid.device import send
from hybrid.model.block_pass import BlockRows, Sight
from hybrid.model.cache import KVCache
from hybrid.model.config import ModelConfig
from hybrid.model.masks import Cached


@dataclass(frozen=True, eq=False)
class Branched(Cached):
    """Pattern of rows in branches: beside what `Cached` says, a row sees the slots of its own branch."""

    position: Tensor = field(kw_only=True)  # (b, r)
    own_start: Tensor = field(kw_only=True)  # (b, r): first slot of the branch
    own_end: Tensor = field(kw_only=True)  # (b, r): behind its last; 0 of clean rows

    @property
    def positions(self) -> Tensor:
        return self.position

    def dense(self) -> Tensor:
        """Return the dense mask, (b, r, span) booleans, made once for all layers."""
        return self._with_branches

    @cached_property
    def _with_branches(self) -> Tensor:
        slots = torch.arange(self.span.start, self.span.stop, device=self.visible_end.device)
        return super().dense() | ((slots >= self.own_start[..., None]) & (slots < self.own_end[..., None]))


@dataclass(frozen=True, kw_only=True)
class Branches(Sight):
    """What rows attend to in a forward whose live rows (b, n * m) are branches.

    Args:
        width: m.
        drafted: how many of each text's pending tokens are a draft. Branch k stands behind k of these;
            a text whose draft is shorter has none there.
        n_valid: (b, n) MASKs of each branch that there are. What is behind them is seen by nobody.
    """

    width: int
    drafted: Sequence[int]
    n_valid: Tensor

    def new_pattern(self, rows: BlockRows, config: ModelConfig, cache: KVCache, with_slots: bool = False) -> Cached:
        """Make the pattern of a forward."""
        pattern = super().new_pattern(rows, config, cache, with_slots)
        if not rows.live.shape[1]:
            return pattern
        m, n_pending = self.width, rows.n_pending
        ends = [(n + count - k, n + count) for (n, count, _), k in zip(rows.places, self.drafted, strict=True)]
        first, behind = send(torch.tensor(ends), rows.live.device).unsqueeze(-1).unbind(1)  # (b, 1) each
        i = torch.arange(rows.live.shape[1], device=rows.live.device)
        own_start = behind + i // m * m
        n_valid = self.n_valid.repeat_interleave(m, dim=1)
        is_valid = (i % m < n_valid) & (first + i // m <= behind)
        # Where there is no MASK the row sees itself, so that its softmax is finite.
        own_end = torch.where(is_valid, own_start + n_valid, behind + i + 1)
        own_start = torch.where(is_valid, own_start, behind + i)
        end = (first + i // m).masked_fill(~is_valid, 0)
        slots, _ = rows.slots(alike=False)
        position = torch.cat([slots[:, :n_pending], first + i // m + i % m], dim=1)
        start = pattern.visible_start
        if start is not None:
            assert self.window is not None
            of_branches = position[:, n_pending:] + self.block_size - self.window
            start = torch.cat([start[:, :n_pending].expand(len(first), -1), of_branches], dim=1)
        none = torch.zeros_like(slots[:, :n_pending])
        return Branched(
            pattern.slots, pattern.n_slots,
            torch.cat([pattern.visible_end[:, :n_pending].expand(len(first), -1), end], dim=1), pattern.span,
            visible_start=start, query_document=pattern.query_document, slot_document=pattern.slot_document,
            position=position, own_start=torch.cat([none, own_start], dim=1), own_end=torch.cat([none, own_end], dim=1),
        )  # fmt: skip
