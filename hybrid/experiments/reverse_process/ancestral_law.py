"""The exact law of ancestral decoding on a time grid, by enumeration, and of the decoders themselves by simulation.

A token is revealed in the cell of the grid that holds its hitting time. All tokens of one cell are drawn at once, each
given what earlier cells revealed; first_hitting draws one token at a time, which is the law of ever finer grids.

Shape legend: x texts (all of them), L positions of the block, s = 2^L sets of masked positions, T cells.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hybrid.decoding import GenerationConfig
from hybrid.decoding.engine import Engine
from hybrid.likelihoods import Rows
from hybrid.likelihoods.enumerated import any_order_nll, mask_table
from hybrid.model import ModelConfig, Transformer
from hybrid.model.attention import SDPA
from hybrid.objectives.schedules import SCHEDULES
from hybrid.options import build

VOCAB, LENGTH = 3, 4


def cell_widths(steps: int, schedule: Any) -> Tensor:
    """Compute (T,) the probability of each cell to hold a token's hitting time, from time 1 to 0 as in decoding."""
    time = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    masked = build(SCHEDULES, schedule, "schedule").one_minus_alpha(time)
    return masked[:-1] - masked[1:]


def expected_forwards(widths: Tensor, tokens: int) -> float:
    """sum_j 1 - (1 - w_j)^tokens: a block needs a forward for each cell that is not empty."""
    return float((1 - (1 - widths) ** tokens).sum())


def ancestral_law(table: Tensor, widths: Tensor) -> Tensor:
    """Compute (x,) the probability of each text, from its `mask_table` (x, 2^L, L) of log p(x_l | tokens outside S).

    f_j(S), the probability to write the text on S in cells j.. when S is masked before cell j, satisfies f_T(empty) = 1
    and f_j(S) = sum over R in S of q^|R| (1 - q)^|S - R| prod_{l in R} p(x_l | outside S) f_{j+1}(S - R),
    q = w_j / (w_j + .. + w_T).
    """
    n_sets, length = table.shape[1:]
    members = (torch.arange(n_sets)[:, None] >> torch.arange(length)) & 1  # (s, L)
    before, after = members[:, None].bool(), members[None].bool()  # masked before and after a cell
    possible = ~(after & ~before).any(-1)  # (s, s): nothing is masked again
    revealed = before & ~after  # (s, s, L)
    log_write = torch.einsum("xsl,stl->xst", table, revealed.to(table.dtype))
    n_revealed, n_left = revealed.sum(-1), after.sum(-1)
    left = widths.flip(0).cumsum(0).flip(0)
    f = torch.zeros(table.shape[:2], dtype=table.dtype)
    f[:, 0] = 1  # nothing masked: done
    for q in (widths / left).clamp(max=1).flip(0):
        move = possible * q**n_revealed * (1 - q) ** n_left
        f = torch.einsum("xst,xt->xs", log_write.exp() * move, f)
    return f[:, -1]


def total_variation(p: Tensor, q: Tensor) -> float:
    return 0.5 * float((p - q).abs().sum())


def divergence(p: Tensor, q: Tensor) -> float:
    """KL(p || q) in nats."""
    return max(0.0, float(torch.xlogy(p, p / q).sum()))


def spend_draws(model: Transformer) -> None:
    """Draw once for nothing, as torch's modules do when they are made: published toys are those of the next draw."""
    torch.empty_like(model.embedding.weight).normal_()
    for module in model.layers.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(torch.empty_like(module.weight), a=5**0.5)


@dataclass(frozen=True)
class Toy:
    """A small random model whose texts can all be enumerated. Its predictions are peaked, so that order matters."""

    model: Transformer
    texts: Tensor  # (x, L)
    table: Tensor  # (x, 2^L, L), see `ancestral_law`
    law: Tensor  # (x,) of any-order decoding

    @classmethod
    @torch.no_grad()
    def make(cls, seed: int) -> Toy:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Transformer(ModelConfig(dim=16, n_layers=2, n_heads=4), VOCAB, VOCAB - 1, initialise=False)
            spend_draws(model)
            model.reset_parameters()
        model = model.double().eval()
        model.attend = SDPA()
        assert model.head_weight is not None
        for weight in (model.embedding.weight, model.head_weight):
            weight.mul_(40)  # untrained weights predict nearly the same everywhere
        texts = torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH)))
        ((table, target),) = mask_table(model, Rows.of(texts), LENGTH)
        return cls(model, texts, table, (-any_order_nll(table, target)).exp())

    def simulate(self, decoder: Any, rows: int, seed: int) -> tuple[Tensor, Tensor]:
        """Count each text (x,), and the forwards of each row (rows,): the steps that revealed something in it."""
        engine = Engine(self.model, LENGTH, GenerationConfig(LENGTH, decoder, seed=seed, stop_at_end=False))
        known, forwards = torch.zeros(rows, dtype=torch.long), torch.zeros(rows, dtype=torch.long)
        tokens = torch.empty(0)
        for state in engine.stream([[]] * rows, LENGTH):
            tokens = torch.tensor(state.tokens)
            now = (tokens != self.model.mask_token_id).sum(1)
            forwards += now > known
            known = now
        index = (tokens * VOCAB ** torch.arange(LENGTH - 1, -1, -1)).sum(1)
        return torch.bincount(index, minlength=len(self.texts)), forwards


def chi_square(counts: Tensor, law: Tensor, least: float = 5.0) -> float:
    """Compute the probability of a deviation at least this large if the law is true.

    Texts expected less than `least` times are taken together.
    """
    expected, observed = law * counts.sum(), counts.double()
    rare = expected < least
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    observed = torch.cat([observed[~rare], observed[rare].sum()[None]])
    if expected[-1] < least:  # too rare even together: into the smallest of the others
        smallest = int(expected[:-1].argmin())
        for values in (expected, observed):
            values[smallest] += values[-1]
        expected, observed = expected[:-1], observed[:-1]
    statistic = ((observed - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))
