"""Likelihoods of a split by block size: every entry of `LIKELIHOODS`, and of decoders the likelihood of their orders.

`tightest` is the best of the listed policies for each block. It and `best_order` choose when the text is known, so they
are the likelihood of no procedure. At block size 1 there is one order, and most likelihoods are the same number.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from hybrid.data.batches import PackedTokens
from hybrid.distributed import ALONE, Ranks
from hybrid.likelihoods import LIKELIHOODS, LikelihoodMethod
from hybrid.likelihoods.base import NO_PROCEDURE
from hybrid.likelihoods.elbo import Bound
from hybrid.likelihoods.enumerated import BestOrder, Enumerate
from hybrid.likelihoods.orders import Policy
from hybrid.likelihoods.rows import RowLikelihoods, SplitLikelihood, bound, by_row
from hybrid.lm import LanguageModel
from hybrid.options import build
from hybrid.results.text import aligned, formatted

log = logging.getLogger(__name__)

TIGHTEST = "tightest"
_OF_MASK = {"none": "of MASK without random numbers: "}


@dataclass
class Scores:
    """Evaluate the first `rows` rows of a split (0: all), each rank its share.

    Results depend neither on `batch_rows` nor on the number of ranks.
    """

    lm: LanguageModel
    split: PackedTokens
    precision: Callable[[], AbstractContextManager]
    rows: int = 0
    draws: int = 4
    seed: int = 0
    batch_rows: int = 32
    ranks: Ranks = ALONE
    policies: dict[tuple[int, str], RowLikelihoods | None] = field(default_factory=dict, init=False)  # evaluated once

    def lines(
        self, sizes: Sequence[int], enumerated: bool = False, decoders: Mapping[str, Any] | None = None,
        every: bool = False, named: Mapping[str, LikelihoodMethod] | None = None,
    ) -> list[SplitLikelihood]:  # fmt: skip
        """Evaluate the bound at each block size, and beside it what is asked for.

        Args:
            enumerated: with the any-order likelihood.
            decoders: label -> decoder, for the policies.
            every: with every likelihood that the block size allows; decoders without a policy are left out.
            named: label -> likelihood, further ones; those that are the exact one at block size 1 are left out there.

        Raises:
            ValueError: a decoder without a policy, unless `every`; a named likelihood that has no value.
        """
        found = []
        for size in sizes:
            found.append(self._of_latent(bound(self.lm.model, self.split, size, **self._how)))
            if size > 1 or every:
                found += self._beside_the_bound(size, enumerated, decoders or {}, every)
            for label, method in (named or {}).items():
                if size > 1 or not method.is_exact_at_1:
                    found.append(self._line(size, label, self._by_row(size, method, label)))
        return found

    def policy(self, size: int, label: str, decoder: Any) -> float | None:
        """Find the NLL of a decoder's order, in nats per target token; None if it has none."""
        found = self._policy(size, label, decoder, may_lack=True)
        return None if found is None else self._line(size, "policy", found).nats_per_token

    def _beside_the_bound(
        self, size: int, enumerated: bool, decoders: Mapping[str, Any], every: bool
    ) -> Iterator[SplitLikelihood]:
        """Evaluate what is asked for, in the order of the table of likelihoods."""
        for name, entry in LIKELIHOODS.items():
            if size == 1 and entry.is_exact_at_1:
                continue
            if entry is Policy:
                yield from self._policies(size, decoders, every)
            elif entry is Enumerate and enumerated:
                yield self._line(size, name, self._by_row(size, entry(), name))
            elif entry is not Bound and every and size <= (entry.max_block_size or size):
                if not entry.is_of(self.lm.config.model):
                    continue
                try:
                    method = build(LIKELIHOODS, name, "method")
                except ValueError as error:  # an entry whose options have no defaults
                    log.info("%s: left out: %s", name, error)
                    continue
                yield self._line(size, name, self._by_row(size, method, name))

    def _policies(self, size: int, decoders: Mapping[str, Any], every: bool) -> Iterator[SplitLikelihood]:
        have: list[RowLikelihoods] = []
        for label, decoder in decoders.items():
            found = self._policy(size, label, decoder, may_lack=every)
            if found is not None:
                have.append(found)
                yield replace(self._line(size, "policy", found), decoder=label)
        if len(have) > 1:
            tightest = torch.stack([rows.blocks for rows in have]).amin(0).sum(1)
            yield self._line(size, TIGHTEST, have[0]._replace(nll=tightest))

    def _policy(self, size: int, label: str, decoder: Any, may_lack: bool) -> RowLikelihoods | None:
        if (size, label) not in self.policies:
            try:
                found = self._by_row(size, Policy(decoder), f"policy {label}")
            except ValueError as error:
                if not may_lack:
                    raise
                if not any(label == known for _, known in self.policies):
                    log.info("policy %s: left out: %s", label, error)
                found = None
            self.policies[size, label] = found
        return self.policies[size, label]

    def _by_row(self, size: int, method: LikelihoodMethod, what: str) -> RowLikelihoods:
        log.info("block size %d: %s", size, what)
        return by_row(self.lm.model, self.split, size, method, **self._how)

    @property
    def _how(self) -> dict[str, Any]:
        """What does not depend on the likelihood."""
        return {
            "rows": self.rows, "draws": self.draws, "seed": self.seed, "batch_rows": self.batch_rows,
            "precision": self.precision, "ranks": self.ranks,
        }  # fmt: skip

    def _line(self, size: int, likelihood: str, rows: RowLikelihoods) -> SplitLikelihood:
        tokens = int(rows.tokens.sum())  # not zero, else `bound` had said so
        nats, stderr = float(rows.nll.sum()) / tokens, math.sqrt(float((rows.stderr**2).sum())) / tokens
        return self._of_latent(SplitLikelihood(size, likelihood, nats, stderr, self.split.bits_per_byte(nats), tokens))

    def _of_latent(self, line: SplitLikelihood) -> SplitLikelihood:
        """Say of which texts a line is the likelihood, where the model has random numbers in MASK."""
        model = self.lm.config.model
        if not model.latent or (line.block_size == 1 and model.begin):  # which reads no MASK
            return line
        return replace(line, latent=_entry(line).latent)


def table(lines: Sequence[SplitLikelihood], latent: str = "fresh") -> str:
    """Write plain text; `+-` is the standard error of the noise, for these rows of text.

    `latent`: how texts draw the random numbers of MASK. A likelihood of texts that do otherwise is marked.
    """
    rows = [["block size", "likelihood", "nats/token", "+-", "perplexity", "bits/byte"]]
    for line in lines:
        rows.append(
            [
                str(line.block_size),
                f"{line.likelihood} {line.decoder or ''}".rstrip(),
                f"{_relation(line, latent):<2}{line.nats_per_token:>8.4f}",
                "nan" if math.isnan(line.stderr) else f"{line.stderr:.4f}",
                f"{line.perplexity:.3f}",
                formatted(line.bits_per_byte, ".4f"),
            ]
        )
    return aligned(rows, left=(1,))


def _entry(line: SplitLikelihood) -> type[LikelihoodMethod]:
    """Find the entry of the table that a line is of; `tightest` is one of the best orders."""
    return BestOrder if line.likelihood == TIGHTEST else LIKELIHOODS[line.likelihood.partition(":")[0]]


def _relation(line: SplitLikelihood, latent: str) -> str:
    return _entry(line).relation if line.latent in (None, latent) else NO_PROCEDURE


def notes(lines: Sequence[SplitLikelihood], latent: str = "fresh") -> list[str]:
    """Say below the table what the numbers marked `~` are, each reason once."""
    said = [_entry(line).note for line in lines if _entry(line).relation == NO_PROCEDURE]
    said += [
        f"{_OF_MASK.get(line.latent, '')}the likelihood of texts written with --latent {line.latent}, not {latent}"
        for line in lines
        if line.latent not in (None, latent)
    ]
    return [f"{NO_PROCEDURE}  {note}" for note in dict.fromkeys(said)]
