"""log p(continuation | context) of requests: which likelihood it is, its value, and the error of its noise."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from hybrid.decoding import DECODERS
from hybrid.evaluation.harness.pieces import Piece, batches
from hybrid.likelihoods.arguments import number_of_draws
from hybrid.likelihoods.elbo import Bound
from hybrid.lm import LanguageModel
from hybrid.options import build
from hybrid.progress import progress

log = logging.getLogger(__name__)


class Score(NamedTuple):
    """Of the scored tokens of one piece, or of several pieces together."""

    log_p: float
    stderr: float  # of the noise: 0 where nothing is random, NaN with one draw
    tokens: int

    @classmethod
    def sum(cls, scores: Iterable[Score]) -> Score:
        """Add scores up, whose noise is independent."""
        several = list(scores)
        error = math.sqrt(sum(score.stderr**2 for score in several))
        return cls(sum(score.log_p for score in several), error, sum(score.tokens for score in several))


@dataclass(frozen=True)
class Estimator:
    """What stands for log p: a likelihood of `lm.nll` at one block size.

    Attributes:
        method: `exact` at block size 1; `policy` with a decoder whose order is a function of the text; else `bound`.
        decoder: of the policy.
    """

    lm: LanguageModel
    block_size: int
    method: str
    draws: int | str
    seed: int
    decoder: Any = None

    @classmethod
    def choose(cls, lm: LanguageModel, block_size: int, decoder: Any, draws: int | str, seed: int) -> Estimator:
        """Choose by block size and decoder; None is none that was asked for.

        Raises:
            ValueError: no decoder, or no number of draws.
        """
        draws = number_of_draws(draws, Bound(), "bound")
        built = None if decoder is None else build(DECODERS, decoder, "decoder")
        if block_size > 1 and built is not None:
            policy = cls(lm, block_size, "policy", draws, seed, built)
            try:
                policy.score([Piece((0, 0), 0)])
            except ValueError as error:
                log.info("log p is the bound: %s", error)
            else:
                return policy
        return cls(lm, block_size, "exact" if block_size == 1 else "bound", draws, seed)

    @property
    def about(self) -> dict[str, Any]:
        """What the results say of it."""
        return {
            "estimator": self.method,
            "block_size": self.block_size,
            **({"draws": self.draws, "seed": self.seed} if self.method == "bound" else {}),
        }

    def score(self, pieces: Sequence[Piece], most: int = 1) -> list[Score]:
        """Score pieces, equal ones once. No score depends on the others, nor on `most`, but for rounding.

        Args:
            most: rows of a forward, of which each draw of a piece is one.
        """
        distinct = list(dict.fromkeys(pieces))
        found: dict[Piece, Score] = {}
        at_once = max(1, most // self.draws) if self.method == "bound" and isinstance(self.draws, int) else most
        for numbers in progress(batches(distinct, at_once), len(distinct), "likelihoods", "requests"):
            some = [distinct[number] for number in numbers]
            tokens = torch.tensor([piece.ids for piece in some])
            given = torch.tensor([[piece.n_given] for piece in some])
            result = self.lm.nll(
                tokens, self.block_size, self.method, self.draws, self.seed,
                is_target=torch.arange(tokens.shape[1]) >= given, decoder=self.decoder,
            )  # fmt: skip
            columns = (-result.nll).tolist(), result.stderr.tolist(), result.tokens.tolist()
            found.update(zip(some, map(Score, *columns), strict=True))
        return [found[piece] for piece in pieces]


def errors_of(scores: Mapping[str, Sequence[Score]]) -> dict[str, dict[str, float]]:
    """Summarise the noise in the scores of each task.

    `stderr_per_request` is the root mean square of the errors of single requests, in nats, `stderr_per_token` the error
    of the mean over all scored tokens.
    """
    told = {}
    for task, some in scores.items():
        total = Score.sum(some)
        told[task] = {
            "requests": len(some),
            "tokens": total.tokens,
            "stderr_per_request": total.stderr / math.sqrt(len(some)),
            "stderr_per_token": total.stderr / max(total.tokens, 1),
        }
    return told
