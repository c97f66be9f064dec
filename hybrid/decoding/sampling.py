"""From logits to a proposed token, exactly: float64, one uniform per token, MASK never among the categories.

Joint sampling over tokens and MASK in float32 truncates the Gumbel noise and lowers the effective temperature (Zheng et
al. 2409.02908, section 5). Here the decoder decides *whether* a position is revealed and this file *what* it shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hybrid.arguments import integer, number

TEMPERATURES = (1e-6, 1e6)
"""Beyond them logits overflow or lose their digits: smaller ones are 0, larger ones a uniform distribution."""


@dataclass(frozen=True)
class Sampling:
    """Temperature, then top-k, then nucleus. Temperature 0 takes the most probable token."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        least, most = TEMPERATURES
        number(
            "temperature", self.temperature, lambda t: t == 0 or least <= t <= most,
            f"a finite number of at least 0: from {least} to {most:.0f}, or 0 for the most probable token",
        )  # fmt: skip
        every = "or null to keep every token"
        if self.top_k is not None:
            object.__setattr__(self, "top_k", integer("top_k", self.top_k, 1, also=f", {every}"))
        if self.top_p is not None:
            number("top_p", self.top_p, lambda p: 0 < p <= 1, f"in (0, 1], {every}")

    def truncate(self, log_probs: Tensor) -> Tensor:
        """(m, vocab) log-probabilities -> (m, vocab) float64 logits, -inf where a token is ruled out."""
        logits = log_probs.double()
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            kth = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        if self.top_p is not None and self.top_p < 1:
            ordered, index = logits.softmax(-1).sort(dim=-1, descending=True)
            before = ordered.cumsum(-1) - ordered  # mass of the more probable tokens; the one that crosses p is in
            logits = logits.masked_fill((before >= self.top_p).gather(-1, index.argsort(-1)), -torch.inf)
        return logits

    def propose(self, log_probs: Tensor, uniform: Tensor) -> Tensor:
        """(m, vocab) log-probabilities and (m,) float64 uniforms -> (m,) tokens, by inverting the distribution."""
        if self.temperature == 0:
            return log_probs.argmax(-1)
        cumulative = self.truncate(log_probs).softmax(-1).cumsum(-1)
        target = uniform[..., None] * cumulative[..., -1:]  # rounding may leave the last sum below 1
        # The first token whose cumulative mass exceeds the target; a token of mass 0 never is.
        return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=log_probs.shape[-1] - 1)
