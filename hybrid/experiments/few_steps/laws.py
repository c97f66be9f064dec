"""Exact laws of texts that are written in K steps, by enumeration of all partly written texts.

A step turns a canvas, in which some tokens are MASK, into another one: it proposes a token at every masked position,
and reveals some. With J(x | c) the law of the whole text that is proposed on a canvas c, and W(S, T) the probability
that the masked set S becomes T, the canvas of text x with T masked comes next with probability

    sum over c of p(c) J(x | c) W(masked(c), T).

J may have any dependence between the tokens of a step: independent ones, mixtures, copulas.

Shape legend: c canvases = (V + 1)^L, x texts = V^L, s = 2^L sets of masked positions, L positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from hybrid.decoding.unmasking import UnmaskingSchedule
from hybrid.experiments.reverse_process.ancestral_law import cell_widths, expected_forwards, total_variation

ONE_BY_ONE = "B"
"""The number of steps in which one token is revealed at a time, in a random order."""
Steps = int | str


@dataclass(frozen=True)
class Canvases:
    """All partly written texts of `length` tokens of `vocab` kinds; MASK is the id `vocab`."""

    vocab: int
    length: int

    @cached_property
    def texts(self) -> Tensor:
        """(x, L), in the order of numbers of base V."""
        return _numerals(self.vocab, self.length)

    @cached_property
    def tokens(self) -> Tensor:
        """(c, L), in the order of numbers of base V + 1."""
        return _numerals(self.vocab + 1, self.length)

    @cached_property
    def is_masked(self) -> Tensor:
        """(c, L)"""
        return self.tokens == self.vocab

    @cached_property
    def sets(self) -> Tensor:
        """(s, L) booleans: bit l of the number of a set says that l is masked."""
        return ((torch.arange(2**self.length)[:, None] >> torch.arange(self.length)) & 1).bool()

    @cached_property
    def set_of(self) -> Tensor:
        """(c,) the number of the set that is masked."""
        return (self.is_masked.long() << torch.arange(self.length)).sum(1)

    @cached_property
    def masking(self) -> Tensor:
        """(s, x) the canvas that is left of a text when a set is masked."""
        tokens = torch.where(self.sets[:, None], self.vocab, self.texts)
        return (tokens * (self.vocab + 1) ** torch.arange(self.length - 1, -1, -1)).sum(-1)

    @property
    def empty(self) -> int:
        """Return the canvas that is MASK alone."""
        return (self.vocab + 1) ** self.length - 1

    def product(self, log_probs: Tensor) -> Tensor:
        """J(x | c) = prod over l of p(x_l | c): (c, L, V), all mass on a token that is known, -> (c, x)."""
        total = log_probs.new_zeros(len(self.tokens), len(self.texts))
        for place in range(self.length):
            total += log_probs[:, place, self.texts[:, place]]
        return total.exp()

    def with_known(self, log_probs: Tensor) -> Tensor:
        """Put all mass on the tokens that are known: (m, V) of the masked positions -> (c, L, V) float64."""
        shape = *self.tokens.shape, self.vocab
        known = torch.full(shape, -math.inf, dtype=torch.float64)
        known.scatter_(-1, self.tokens.clamp(max=self.vocab - 1)[..., None], 0.0)
        known[self.is_masked] = log_probs.double()
        return known


def _numerals(base: int, digits: int) -> Tensor:
    places = base ** torch.arange(digits - 1, -1, -1)
    return torch.arange(base**digits)[:, None] // places % base


def counts(steps: Steps, length: int) -> list[int]:
    """Divide the tokens of a block among steps, as evenly as can be; with more steps than tokens it is one a step."""
    n = length if steps == ONE_BY_ONE else min(int(steps), length)
    return UnmaskingSchedule(n).counts(torch.ones(1, length, dtype=torch.bool))[0].tolist()


@lru_cache
def even_moves(canvases: Canvases, steps: Steps) -> list[Tensor]:
    """W (s, s) of each step, which reveals a number of masked tokens, all sets of as many being equally likely."""
    possible, n_revealed = _transitions(canvases)
    found = []
    for count in counts(steps, canvases.length):
        move = (possible & (n_revealed == count)).double()
        found.append(move / move.sum(1, keepdim=True).clamp(min=1))  # from sets of fewer there is no way, and none here
    return found


@lru_cache
def grid_moves(canvases: Canvases, steps: Steps) -> list[Tensor]:
    """W (s, s) of each of `steps` cells of the linear time grid (`ancestral`); of ever more, one token at a time."""
    if steps == ONE_BY_ONE:
        return even_moves(canvases, steps)
    possible, n_revealed = _transitions(canvases)
    n_left = canvases.sets.sum(-1)
    cells = []
    for cell in range(int(steps)):
        q = 1 / (int(steps) - cell)  # of the linear schedule
        cells.append(possible * q ** n_revealed.double() * (1 - q) ** n_left.double())
    return cells


def _transitions(canvases: Canvases) -> tuple[Tensor, Tensor]:
    """(s, s): whether a set of masked positions can become another, nothing being masked again; how many it loses."""
    sets = canvases.sets
    return ~(sets[None] & ~sets[:, None]).any(-1), (sets[:, None] & ~sets[None]).sum(-1)


def grid_forwards(steps: Steps, length: int) -> float:
    """Compute how many cells of the time grid reveal something, on average: each costs a forward."""
    return float(length) if steps == ONE_BY_ONE else expected_forwards(cell_widths(int(steps), "linear"), length)


def written(canvases: Canvases, proposals: Tensor, moves: Sequence[Tensor]) -> Tensor:
    """(x,) the law of the texts written in some moves, of the law (c, x) of what is proposed on each canvas."""
    law = proposals.new_zeros(len(canvases.tokens))
    law[canvases.empty] = 1
    for move in moves:
        law = step(canvases, law, proposals, move)
    return law[canvases.masking[0]]


def step(canvases: Canvases, law: Tensor, proposals: Tensor, move: Tensor) -> Tensor:
    """(c,) the law of the next canvas, from that of this one, (c,)."""
    n_sets, n_texts = len(canvases.sets), len(canvases.texts)
    joint = law.new_zeros(n_sets, n_texts).index_add_(0, canvases.set_of, law[:, None] * proposals)  # (s, x)
    left = move.to(joint).T @ joint
    return torch.zeros_like(law).index_add_(0, canvases.masking.flatten(), left.flatten())


def judged(law: Tensor, source: Tensor, length: int) -> dict[str, float]:
    """Compare a law of texts with that of the source; NLL (cross-entropy) and entropy are in nats per token."""
    nll = float(-(law * source.log()).sum()) / length
    return {"variation": total_variation(law, source), "nll": nll, "entropy": entropy(law) / length}


def entropy(law: Tensor) -> float:
    """-sum p log p, in nats."""
    return float(-torch.xlogy(law, law).sum())


def tempered(log_probs: Tensor, temperature: float) -> Tensor:
    """log softmax(log p / T); a token that is known stays known."""
    return (log_probs / temperature).log_softmax(-1)


def conditionals(canvases: Canvases, source: Tensor) -> Tensor:
    """(c, L, V) log p(x_l | what is known) of a law of texts (x,): what a perfect network predicts."""
    known = canvases.tokens[:, None]
    agrees = ((known == canvases.texts) | (known == canvases.vocab)).all(-1).double()  # (c, x)
    found = []
    for value in range(canvases.vocab):
        has = (canvases.texts == value).double() * source[:, None]  # (x, L)
        found.append(agrees @ has)
    mass = torch.stack(found, dim=-1)  # (c, L, V)
    return (mass / mass.sum(-1, keepdim=True)).log()
