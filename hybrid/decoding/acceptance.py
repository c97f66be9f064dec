"""Rules of speculation: how a draft is drawn from q, and how much of it is kept where the law is p.

    match      draft ~ q                    kept while the draw from p is the same        sum p q
    argmax     draft = argmax q             kept while the draw from p is the same        p(argmax q)
    shared     draft ~ q by the check's     kept while the draw from p is the same        q and p drawn by one noise
               own random number
    rejection  draft ~ q                    kept with min(1, p / q), else ~ (p - q)+      sum min(p, q)

The first three write what the check draws, which is the text of plain decoding whatever the draft is. The last one is
another text of the same law (Leviathan et al. 2211.17192). p and q are those of the tokens as they are drawn: after
temperature, top-k and top-p.

Shape legend: r rows, n places that are checked, all but the last with a draft, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid import rng
from hybrid.decoding.sampling import Sampling, gumbel

RULES = ("match", "argmax", "shared", "rejection")


@dataclass
class Noise:
    """float64 uniforms (r, n)."""

    check: Tensor  # of plain decoding
    draft: Tensor
    accept: Tensor
    _made: Tensor | None = field(default=None, init=False)

    def behind_the_first(self) -> Noise:
        """Return that of all places but the first."""
        return Noise(self.check[:, 1:], self.draft[:, 1:], self.accept[:, 1:])

    def part(self, rows: Sequence[int] | slice, places: int) -> Noise:
        """Return that of some rows, and of the first places."""
        part = Noise(*(uniform[rows][:, :places] for uniform in (self.check, self.draft, self.accept)))
        part._made = None if self._made is None else self._made[rows][:, :places]
        return part

    def of_check(self, sampling: Sampling, vocab: int) -> Tensor | None:
        """(r, n, V) Gumbel noise of `check`, made once for draft and check; None: tokens are drawn without."""
        if self._made is None and sampling.is_gumbel:
            self._made = gumbel(self.check.flatten(), vocab).view(*self.check.shape, vocab)
        return self._made


def draw(sampling: Sampling, log_probs: Tensor, uniform: Tensor, noise: Tensor | None = None) -> Tensor:
    """(r, n, V), (r, n) -> (r, n) tokens; `noise` (r, n, V) as that of `Sampling.draw`."""
    made = None if noise is None else noise.flatten(0, 1)
    return sampling.draw(log_probs.flatten(0, 1), uniform.flatten(), made).view(uniform.shape)


def drafted(rule: str, sampling: Sampling, q: Tensor, noise: Noise) -> Tensor:
    """(r, n - 1, V) log-probabilities -> (r, n - 1) tokens of a draft."""
    if rule == "argmax":
        return q.argmax(-1)
    if rule == "shared":
        made = noise.of_check(sampling, q.shape[-1])
        return draw(sampling, q, noise.check[:, :-1], None if made is None else made[:, :-1])
    if rule == "match":
        return draw(sampling, q, noise.draft[:, :-1])
    return _invert(probabilities(sampling, q), noise.draft[:, :-1])


def checked(
    rule: str, sampling: Sampling, p: Tensor, q: Tensor, draft: Tensor, is_draft: Tensor, noise: Noise
) -> tuple[Tensor, Tensor]:
    """Return tokens (r, n), and how many of each row (r,) stand: a place stands if all drafts before it were kept.

    The last place has no draft, which would save nothing: it gets a token of p.

    Args:
        p: (r, n, V) log-probabilities of the check.
        q: (r, n - 1, V) log-probabilities off which `draft` (r, n - 1) was drawn.
        is_draft: (r, n - 1) False where there is none after all, since the text ends.
    """
    if rule != "rejection":
        tokens = draw(sampling, p, noise.check, noise.of_check(sampling, p.shape[-1]))
        kept = (tokens[:, :-1] == draft) & is_draft
    else:
        p, q = probabilities(sampling, p), probabilities(sampling, q) * is_draft[..., None]
        of_p, of_q = (law.gather(-1, draft[..., None]).squeeze(-1) for law in (p[:, :-1], q))
        kept = (noise.accept[:, :-1] * of_q < of_p) & is_draft
        left = (p - F.pad(q, (0, 0, 0, 1))).clamp(min=0)
        left = torch.where(left.sum(-1, keepdim=True) > 0, left, p)  # p = q, and rounding has refused
        tokens = _invert(left, noise.check)
        tokens[:, :-1] = torch.where(kept, draft, tokens[:, :-1])
    return tokens, 1 + kept.cumprod(-1).sum(-1)


def probabilities(sampling: Sampling, log_probs: Tensor) -> Tensor:
    """(r, n, V) -> (r, n, V) float64, as tokens are drawn."""
    if sampling.temperature == 0:
        best = log_probs.argmax(-1, keepdim=True)
        return torch.zeros_like(log_probs, dtype=torch.float64).scatter_(-1, best, 1.0)
    return sampling.truncate(log_probs.flatten(0, 1)).softmax(-1).view(log_probs.shape)


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """(r, n, V), (r, n) -> (r, n)"""
    return rng.categorical(weights.log().flatten(0, 1), uniform.flatten()).view(uniform.shape)
