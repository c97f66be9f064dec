"""Draw tokens from log-probabilities, exactly: float64, one key per token, MASK never among the categories.

Joint sampling over tokens and MASK in float32 truncates the Gumbel noise and lowers the effective temperature (Zheng et
al. 2409.02908, section 5). Here the decoder decides *whether* a position is revealed and this file *what* it shows.

Shape legend: r active rows, B block size, S steps, m positions that are drawn, V vocabulary.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from hybrid import rng
from hybrid.arguments import integer, number
from hybrid.device import send
from hybrid.model import ModelConfig
from hybrid.options import option, pick

TEMPERATURES = (1e-6, 1e6)
"""Beyond them logits overflow or lose their digits: smaller ones are 0, larger ones a uniform distribution."""

NOISES = ("inverse", "gumbel")

LAW = ("temperature", "top_k", "top_p")
"""The options of `Sampling` that change the law of a token; with another noise one draws from the same law."""

STEPS, NUMBERS = 16, 256
"""At most so many steps, and about so many numbers of a row, are made at a time."""


@dataclass(frozen=True)
class Sampling:
    """Temperature, then top-k, then nucleus. Temperature 0 takes the most probable token."""

    _: KW_ONLY
    temperature: float = option(1.0, "divides the logits; 0: the most probable token")
    top_k: int | None = option(None, "sample among the K most probable tokens; None: among all")
    top_p: float | None = option(None, "sample from the smallest set of tokens of mass P; None: from all")
    noise: str = option(
        "inverse",
        "what turns a random number into a token: the inverse of the distribution function, or Gumbel noise on every "
        "token, which draws the same token from two similar distributions more often",
        NOISES,
    )

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
        pick("noise", self.noise, NOISES)

    def truncate(self, log_probs: Tensor) -> Tensor:
        """(m, V) log-probabilities -> (m, V) float64 logits, -inf where a token is ruled out."""
        logits = log_probs.double()
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            kth = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        if self.top_p is not None and self.top_p < 1:
            ordered, index = logits.softmax(-1).sort(dim=-1, descending=True)
            before = ordered.cumsum(-1) - ordered  # mass of the more probable tokens; the one that crosses p is in
            is_out = torch.zeros_like(index, dtype=torch.bool).scatter_(-1, index, before >= self.top_p)
            logits = logits.masked_fill(is_out, -torch.inf)
        return logits

    @property
    def is_gumbel(self) -> bool:
        """Whether tokens are drawn by Gumbel noise."""
        return self.noise == "gumbel" and self.temperature > 0

    def draw(self, log_probs: Tensor, uniform: Tensor, noise: Tensor | None = None) -> Tensor:
        """(m, V) log-probabilities and (m,) float64 uniforms -> (m,) tokens.

        `noise` (m, V) is the `gumbel` of the uniforms, if it has been made; that is most of the time of a draw.
        """
        if self.temperature == 0:
            return log_probs.argmax(-1)
        logits = self.truncate(log_probs)
        if self.is_gumbel:
            return (logits + (gumbel(uniform, logits.shape[-1]) if noise is None else noise)).argmax(-1)
        return rng.categorical(logits, uniform)


def gumbel(uniform: Tensor, vocab: int) -> Tensor:
    """(m,) float64 uniforms -> (m, V) standard Gumbel noise, of which a uniform is the key.

    -log(-log(1 - u)) of further uniforms u, which its 53 random bits and the token key: finite, and as independent as
    those of any other key.
    """
    bits = (uniform * 2.0**53).long()[..., None]
    token = torch.arange(vocab, device=uniform.device)
    further = rng.uniform(0, rng.GUMBEL, bits, token).clamp(min=2.0**-54)
    return -(-torch.log1p(-further)).log()


class Uniforms:
    """float64 uniforms in [0, 1), keyed by (seed, purpose, row key, position, step) and by nothing else.

    They are made ahead, since many at once cost as much as a few. The table of a purpose holds the next steps of the
    live block, and of the blocks behind it where blocks are short. It is made anew when something is asked for that it
    does not hold.
    """

    def __init__(self, seed: int, block_size: int):
        self.seed, self.block_size = seed, block_size
        self.n_steps = min(block_size, STEPS)
        self.n_blocks = max(NUMBERS // (block_size * self.n_steps), 1)
        self.tables: dict[int, tuple[list[tuple[int, int]], int, Tensor]] = {}  # rows, first step, numbers

    def at(self, purpose: int, rows: list[tuple[int, int]], step: int, device: torch.device) -> Tensor:
        """(r, B) of rows given by row key and first position of their live block."""
        B = self.block_size
        of, first_step, table = self.tables.get(purpose, ([], 0, torch.empty(0)))
        offset = self._offset(rows, of)
        if offset is None or not first_step <= step < first_step + self.n_steps:
            offset, first_step = 0, step
            row_key, start = send(torch.tensor(rows), device)[:, :, None, None].unbind(1)  # (r, 1, 1) each
            position = start + torch.arange(self.n_blocks * B, device=device)
            steps = torch.arange(step, step + self.n_steps, device=device)[:, None]
            table = rng.uniform(self.seed, purpose, row_key, position, steps)  # (r, S, blocks * B)
            self.tables[purpose] = rows, first_step, table
        return table[:, step - first_step, offset : offset + B].contiguous()

    def normals(self, model: ModelConfig, rows: list[tuple[int, int]], step: int, device: torch.device) -> Tensor:
        """(r, B, model.latent) float64, of rows as `at` has them: the random numbers of MASK at a step."""
        row_key, place = send(torch.tensor(rows), device)[:, :, None, None].unbind(1)  # (r, 1, 1) each
        if model.latent_per == "position":
            place = place + torch.arange(self.block_size, device=device)[:, None]
        number = torch.arange(model.latent, device=device)
        return rng.normal(self.seed, rng.LATENT, row_key, place, step, number).expand(-1, self.block_size, -1)

    def _offset(self, rows: list[tuple[int, int]], of: list[tuple[int, int]]) -> int | None:
        """Find where the live blocks stand in a table made for the rows `of`.

        None unless all rows have moved on by the same number of blocks, to one that it holds.
        """
        if rows is of:  # the block for which it was made
            return 0
        if len(rows) != len(of):
            return None
        moved = rows[0][1] - of[0][1]
        if not 0 <= moved < self.n_blocks * self.block_size:
            return None
        return moved if rows == [(row_key, start + moved) for row_key, start in of] else None
