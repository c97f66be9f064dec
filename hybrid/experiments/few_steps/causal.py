"""The exact laws of decoders that read a network causally, too: `copula` and `arpc`, step by step as they decide.

Shape legend: c canvases, x texts, s sets of masked positions, L positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hybrid.experiments.few_steps.laws import ONE_BY_ONE, Canvases, Steps, even_moves
from hybrid.model import Transformer
from hybrid.model.two_stream import two_stream_hidden


@torch.no_grad()
def causal_predictions(network: Transformer, canvases: Canvases) -> Tensor:
    """(x, L, V) float64 log p(. | x_<l), each read off the clean row before."""
    texts = canvases.texts
    everywhere = torch.ones_like(texts, dtype=torch.bool)
    nobody = everywhere[:, None][:, :0]
    hidden = two_stream_hidden(network, texts, nobody, 1, autoregressive=everywhere)
    return network.head(hidden).double().log_softmax(-1).view(*texts.shape, -1)


def copula_proposals(canvases: Canvases, block: Tensor, causal: Tensor, canvas: str, alpha: float = 1.0) -> Tensor:
    """J (c, x) of tokens drawn from the left by log p_AR + alpha (log p_block(. | C) - log p_block(. | C before l)).

    Args:
        block: (c, L, V) log p_block(. | canvas).
        causal: (x, L, V) log p_AR(. | x_<l).
        canvas: C is the canvas at the `start` of the step, or has the tokens `drawn` before l as well.
    """
    tokens, texts, mask = canvases.tokens, canvases.texts, canvases.vocab
    agrees = ((tokens[:, None] == texts) | (tokens[:, None] == mask)).all(-1)  # (c, x)
    total = torch.zeros(len(tokens), len(texts), dtype=torch.float64)
    for place in range(canvases.length):
        masked = canvases.is_masked[:, place]
        known_behind = (~canvases.is_masked[:, place:]).any(1)
        before = texts if canvas == "drawn" else None
        with_known, without = (_canvas_at(canvases, before, place, keep_behind) for keep_behind in (True, False))
        more = block[with_known, place] - block[without, place]  # (c, x, V), or (c, 1, V)
        more = torch.where((masked & known_behind)[:, None, None], more, 0.0)
        log_probs = (causal[None, :, place] + alpha * more).log_softmax(-1)
        own = texts[:, place].expand(len(tokens), -1)[..., None]
        total += torch.where(masked[:, None], log_probs.gather(-1, own)[..., 0], 0.0)
    return total.exp() * agrees


def _canvas_at(canvases: Canvases, before: Tensor | None, place: int, keep_behind: bool) -> Tensor:
    """Numbers of the canvases whose tokens before `place` are those of texts (x, L), or their own: (c, x) or (c, 1).

    From `place` on they are as they were, or all MASK.
    """
    weights = (canvases.vocab + 1) ** torch.arange(canvases.length - 1, -1, -1)
    left = canvases.tokens[:, None] if before is None else before[None]
    left = (left * weights)[..., :place].sum(-1)
    right = canvases.tokens if keep_behind else torch.full_like(canvases.tokens, canvases.vocab)
    return left + (right * weights)[:, place:].sum(-1)[:, None]


def copula_forwards(canvases: Canvases, steps: Steps, canvas: str) -> float:
    """Compute the forwards of a block, on average over which tokens are revealed when."""
    law = torch.zeros(len(canvases.sets), dtype=torch.float64)
    law[-1] = 1  # all masked
    total = 0.0
    for move in even_moves(canvases, steps):
        pairs = law[:, None] * move  # (s, s)
        for before, after in pairs.nonzero().tolist():
            cost = _copula_cost(canvases.sets[before].tolist(), canvases.sets[after].tolist(), canvas)
            total += float(pairs[before, after]) * cost
        law = pairs.sum(0)
    return total


def _copula_cost(masked: list[bool], after: list[bool], canvas: str) -> int:
    """Count the forwards of a step: a causal one for each token up to the last that is due, and the corrections."""
    due = [was and not now for was, now in zip(masked, after, strict=True)]
    drawn = [place for place, was in enumerate(masked) if was and any(due[place:])]
    corrected = [place for place in drawn if not all(masked[place:])]
    if canvas == "drawn":
        return len(drawn) + 2 * len(corrected)
    opens = [place for place in corrected if place == 0 or not masked[place - 1]]
    return len(drawn) + len(opens) + bool(corrected)


@dataclass(frozen=True)
class Corrected:
    """What `arpc` decides from: J (c, x), and the positions of each text, the likeliest token first, (x, L)."""

    proposals: Tensor
    surest: Tensor


def corrected_law(canvases: Canvases, seen: Corrected, steps: Steps) -> Tensor:
    """(x,) the law of texts of which the least likely tokens are masked and written again."""
    n_steps = canvases.length if steps == ONE_BY_ONE else int(steps)
    rank = seen.surest.argsort(-1)
    law = seen.proposals.new_zeros(len(canvases.tokens))
    law[canvases.empty] = 1
    numbers = torch.arange(len(canvases.texts))
    for n_masked in remasked(n_steps, canvases.length):
        filled = law @ seen.proposals
        masked = rank >= canvases.length - n_masked
        sets = (masked.long() << torch.arange(canvases.length)).sum(1)
        law = torch.zeros_like(law).index_add_(0, canvases.masking[sets, numbers], filled)
    return law[canvases.masking[0]]


def remasked(steps: int, length: int) -> list[int]:
    """How many tokens are masked after each step, as `arpc` has it; a block that is complete is done."""
    found = [int(length * (1 - (step + 1) / steps) + 1e-9) for step in range(steps)]
    return found[: found.index(0) + 1]


def corrector_forwards(steps: Steps, length: int) -> float:
    """One forward a step, and but for the last a causal one."""
    return 2.0 * len(remasked(length if steps == ONE_BY_ONE else int(steps), length)) - 1
