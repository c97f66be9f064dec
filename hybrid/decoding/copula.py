"""Tokens of one step drawn jointly: the autoregressive law of a network, corrected by what its masked law knows more.

    logits(l)  =  log p_AR(x_l | x_<l)  +  alpha (log p_block(x_l | canvas) - log p_block(x_l | canvas before l))

Liu et al. (2410.01949) combine two networks so; here both laws are those of one. "Canvas before l" is the canvas with
everything from l on masked. Where nothing is known behind l both terms are one, and neither is computed.

Shape legend: r rows of the batch, B positions of the live block, m positions that are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybrid.decoding.decoder import View
from hybrid.decoding.fixed_order import FirstHitting
from hybrid.decoding.unmasking import check_count, check_number
from hybrid.options import at_most, option, pick

CANVASES = ("start", "drawn")
MAX_ALPHA = 1000
"""Far beyond what makes sense; of much larger ones the logits are no numbers any more."""


@dataclass(frozen=True)
class Copula:
    """Tokens of a step drawn jointly, from the left: the causal law, corrected by what is known behind each.

    `canvas` says what the correction sees. With the tokens just drawn it is exact wherever both laws are those of one
    distribution. With what was known when the step began it is exact only if that distribution is a first-order chain,
    and costs fewer forwards: one for the canvas, one for each stretch of masked tokens with something known behind it,
    and a causal one for each token. With `drawn` all three are paid at every token.
    """

    reads_causally: ClassVar[bool] = True
    steps: int = option(2, "steps of a block, each drawing tokens from the left and revealing a random share of them")
    canvas: str = option("start", "what the correction sees: the step's start, or also the tokens just drawn", CANVASES)
    alpha: float = option(1.0, "strength of the correction; 0: the causal law alone")

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        pick("canvas", self.canvas, CANVASES)
        check_number("alpha", self.alpha, least=0)
        at_most("alpha", self.alpha, MAX_ALPHA)

    def start(self, view: View) -> Tensor:
        """(r, B) the step at which each position is due: a random order, as that of `first_hitting`."""
        return FirstHitting(self.steps).start(view)

    def select(self, view: View, state: Tensor) -> tuple[Tensor, None, Tensor]:
        due = (state == view.step) & view.is_masked
        # What is drawn on the way and not due is forgotten; nothing behind the last that is due matters.
        drawn = view.is_masked & (due.flip(-1).cumsum(-1).flip(-1) > 0)
        known = ~view.is_masked & view.is_valid
        behind = known.flip(-1).cumsum(-1).flip(-1) > 0  # (r, B): something is known from here on
        corrected = drawn & behind & (self.alpha > 0)
        from_start = _Start(view, corrected) if self.canvas == "start" else None
        canvas = view.tokens
        for i in range(canvas.shape[1]):
            here = torch.zeros_like(drawn)
            here[:, i] = drawn[:, i]
            if not bool(here.any()):
                continue
            log_probs = view.read(canvas, here, causal=True)
            which = corrected[here]
            if bool(which.any()):
                more = _more(view, canvas, here & corrected, i) if from_start is None else from_start.of(i)
                log_probs = log_probs.clone()
                log_probs[which] = (log_probs[which] + self.alpha * more).log_softmax(-1)
            canvas = canvas.masked_scatter(here, view.sample(log_probs, here))
        return due, None, canvas


def _difference(known: Tensor, before: Tensor) -> Tensor:
    """known - before of log-probabilities; what neither allows (a banned MASK) is left as it is."""
    return (known.clamp(min=-1e30) - before.clamp(min=-1e30)).masked_fill(known == -torch.inf, -torch.inf)


def _more(view: View, canvas: Tensor, here: Tensor, i: int) -> Tensor:
    """(m, V) what `canvas` says at position i of the rows `here` (r, B) beyond what it says before i."""
    before = canvas.clone()
    before[:, i:] = view.mask_token_id
    return _difference(view.read(canvas, here), view.read(before, here))


class _Start:
    """The correction by the canvas of a step's start: all its forwards, made once.

    Tokens of one stretch, with the same known ones before them, are read from one canvas: that stretch and what is
    behind it masked. The k-th stretches of all rows share a forward.
    """

    def __init__(self, view: View, corrected: Tensor):
        self.corrected, tokens = corrected, view.tokens
        if not bool(corrected.any()):
            return
        known = view.read(tokens, corrected)
        before = torch.empty_like(known)
        opens = corrected & ~torch.cat([torch.zeros_like(corrected[:, :1]), view.is_masked[:, :-1]], dim=1)
        stretch = (opens.cumsum(-1) * corrected)[corrected]  # (m,)
        number = opens.cumsum(-1)
        for k in range(1, int(number.max()) + 1):
            of_k = corrected & (number == k)
            canvas = tokens.masked_fill(number >= k, view.mask_token_id)
            before[stretch == k] = view.read(canvas, of_k)
        self.more = _difference(known, before)

    def of(self, i: int) -> Tensor:
        """(m, V) of the rows that are corrected at position i."""
        column = torch.zeros_like(self.corrected)
        column[:, i] = True
        return self.more[column[self.corrected]]
