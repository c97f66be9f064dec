"""Likelihoods of a split by block size, and by decoding order: the lines of a table.

`bound`, `exact` and `enumerate` are those of hybrid/likelihood.py. Of hybrid/orders.py are

`policy`      the exact likelihood of generating in one deterministic order.
`importance`  a bound from several random orders of each row, tighter than `bound` in expectation.
`best_order`  the best of all orders of each block.
`tightest`    the best of the listed policies for each block. This and `best_order` choose when the text is known, so
              they are the likelihood of no procedure.

Shape legend: R rows evaluated.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybrid.data.batches import PackedTokens
from hybrid.distributed import ALONE, Ranks
from hybrid.likelihoods.likelihood import MAX_ENUMERATED
from hybrid.likelihoods.orders import order_nll
from hybrid.likelihoods.rows import any_order, bound, perplexity, row_batches
from hybrid.lm import LanguageModel
from hybrid.results.text import aligned, formatted

log = logging.getLogger(__name__)

SIGNS = {"bound": "<=", "importance": "<=", "best_order": "~ ", "tightest": "~ "}
"""How a value stands to the likelihood that it is about; `= ` where it is that likelihood."""

HINDSIGHT = "~  the best of several orders, chosen when the text is known: the likelihood of no procedure"


class Rows(NamedTuple):
    """Likelihoods of all rows evaluated, float64 (R,) each, and their target tokens (R,)."""

    nll: Tensor
    stderr: Tensor
    tokens: Tensor
    blocks: Tensor  # (R, g) float64, nats of each block of a policy; (R, 0) of anything else


@dataclass
class Scores:
    """Evaluates the first `rows` rows of a split (0: all), each rank its share; results depend on neither `batch_rows`
    nor the number of ranks."""

    lm: LanguageModel
    split: PackedTokens
    precision: Callable[[], AbstractContextManager]
    rows: int = 0
    draws: int = 4
    seed: int = 0
    batch_rows: int = 32
    ranks: Ranks = ALONE
    policies: dict[tuple[int, str], Rows | None] = field(default_factory=dict, init=False)  # evaluated once

    def lines(
        self, sizes: Sequence[int], enumerated: bool = False, decoders: Mapping[str, Any] | None = None,
        every: bool = False,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """One dict per line of the table, in nats per target token unless the name says otherwise.

        Args:
            enumerated: with the any-order likelihood.
            decoders: label -> decoder, for the policies.
            every: with every likelihood that the block size allows; decoders without a policy are left out.

        Raises:
            ValueError: a decoder without a policy, unless `every`.
        """
        result = []
        shared = {"rows": self.rows, "batch_rows": self.batch_rows, "precision": self.precision, "ranks": self.ranks}
        for size in sizes:
            b = bound(self.lm.model, self.split, size, draws=self.draws, seed=self.seed, **shared)
            result.append({**self._line(size, b.method, b.nelbo, b.stderr, b.tokens), "by_count": b.by_count})
            if size == 1:  # there is one order, and all likelihoods are the same number
                continue
            if enumerated or (every and size <= MAX_ENUMERATED):
                nll, tokens = any_order(self.lm.model, self.split, size, **shared)
                result.append(self._line(size, "enumerate", nll, 0.0, tokens))
            result += self._order_lines(size, decoders or {}, every)
        return result

    def _order_lines(self, size: int, decoders: Mapping[str, Any], every: bool) -> list[dict[str, Any]]:
        result = [self._summary(size, "importance", self._by_row(size, "importance"))] if every else []
        have: list[Rows] = []
        for label, decoder in decoders.items():
            found = self._policy(size, label, decoder, may_lack=every)
            if found is not None:
                have.append(found)
                result.append({**self._summary(size, "policy", found), "decoder": label})
        if len(have) > 1:
            tightest = torch.stack([rows.blocks for rows in have]).amin(0).sum(1)
            result.append(self._summary(size, "tightest", have[0]._replace(nll=tightest)))
        if every and size <= MAX_ENUMERATED:
            result.append(self._summary(size, "best_order", self._by_row(size, "best_order")))
        return result

    def policy(self, size: int, label: str, decoder: Any) -> float | None:
        """NLL of a decoder's order, in nats per target token; None if it has none."""
        found = self._policy(size, label, decoder, may_lack=True)
        return None if found is None else self._summary(size, "policy", found)["nats_per_token"]

    def _policy(self, size: int, label: str, decoder: Any, may_lack: bool) -> Rows | None:
        if (size, label) not in self.policies:
            try:
                found = self._by_row(size, "policy", decoder, f"policy {label}")
            except ValueError as error:
                if not may_lack:
                    raise
                if not any(label == known for _, known in self.policies):
                    log.info("policy %s: left out: %s", label, error)
                found = None
            self.policies[size, label] = found
        return self.policies[size, label]

    @torch.no_grad()
    def _by_row(self, size: int, method: str, decoder: Any = None, what: str = "") -> Rows:
        log.info("block size %d: %s", size, what or method)
        n_rows = min(self.rows, self.split.n_rows) if self.rows else self.split.n_rows
        parts = []
        for index, is_real in row_batches(n_rows, self.batch_rows, self.ranks):
            batch = self.split.rows(index).to(self.lm.device)
            with self.precision():
                result = order_nll(
                    self.lm.model, batch.tokens, size, method, decoder, self.draws, self.seed, batch.documents,
                    batch.is_target,
                )  # fmt: skip
            blocks = result.nll.new_empty(len(result.nll), 0) if result.blocks is None else result.blocks
            columns = torch.tensor(index), result.nll.cpu(), result.stderr.cpu(), result.tokens.cpu(), blocks.cpu()
            parts.append([column[torch.tensor(is_real)] for column in columns])
        numbers, *values = map(torch.cat, zip(*chain(*self.ranks.gather(parts)), strict=True))
        order = numbers.argsort()
        return Rows(*(column[order] for column in values))

    def _summary(self, size: int, method: str, rows: Rows) -> dict[str, Any]:
        tokens = int(rows.tokens.sum())  # not zero, else `bound` had said so
        stderr = math.sqrt(float((rows.stderr**2).sum())) / tokens
        return self._line(size, method, float(rows.nll.sum()) / tokens, stderr, tokens)

    def _line(self, size: int, method: str, nats: float, stderr: float, tokens: int) -> dict[str, Any]:
        return {
            "block_size": size,
            "likelihood": method,
            "nats_per_token": nats,
            "stderr": stderr,
            "perplexity": perplexity(nats),
            "bits_per_byte": self.split.bits_per_byte(nats),
            "tokens": tokens,
        }


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Plain text; `+-` is the standard error of the noise, for these rows of text."""
    rows = [["block size", "likelihood", "nats/token", "+-", "perplexity", "bits/byte"]]
    for line in lines:
        rows.append(
            [
                str(line["block_size"]),
                f"{line['likelihood']} {line.get('decoder', '')}".rstrip(),
                f"{SIGNS.get(line['likelihood'], '= ')}{line['nats_per_token']:>8.4f}",
                "nan" if math.isnan(line["stderr"]) else f"{line['stderr']:.4f}",
                f"{line['perplexity']:.3f}",
                formatted(line["bits_per_byte"], ".4f"),
            ]
        )
    return aligned(rows, left=(1,))


def notes(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What must be said below the table."""
    return [HINDSIGHT] if any(SIGNS.get(line["likelihood"]) == "~ " for line in lines) else []
