"""Cross-entropy of the masked tokens together, under a mixture over random numbers in MASK.

Tokens that are revealed in one step are drawn independently, given what is known. Given random numbers z in MASK, too,
they are still, but without z they are not: with M draws of z a block's masked tokens have the probability

    p(x | x_t)  ~  (1/M) sum_m prod_l p(x_l | x_t, z_m)

(infinitely many masks: IMDM, 2605.10518; a mixture of products: Di4C, Hayakawa et al. 2410.08709). Its logarithm
is at most what it becomes with many draws (Burda et al. 1509.00519). With r_m the share of draw m in the sum,

    -log (1/M) sum_m exp(-S_m)  =  sum_m r_m S_m + KL(r || uniform),    S_m = -sum_l log p(x_l | x_t, z_m)

and the gradient is that of the first term with r held, so that what is trained are weighted cross-entropies.

Shape legend: b rows, D noise draws, M draws of z, N text length, g blocks, B block size, m masked tokens, k numbers.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from hybrid.device import send
from hybrid.model import Transformer
from hybrid.model.kernels.cross_entropy import cross_entropies, weighted_cross_entropy
from hybrid.model.two_stream import two_stream_hidden
from hybrid.objectives.cross_entropy import masked_loss
from hybrid.objectives.estimators import Masking
from hybrid.objectives.noise import NoiseKeys, block_view, latent_noise
from hybrid.objectives.objective import Loss, MaskedObjective
from hybrid.options import at_least, at_most, option

if TYPE_CHECKING:
    from hybrid.data.batches import Batch

MAX_LATENTS = 2**16


@dataclass(frozen=True)
class Latent(MaskedObjective):
    """-log (1/M) sum_m prod_l p(x_l | x_t, z_m) over the masked tokens of each block, for a share of the rows; plain
    cross-entropy, without z, for the others."""

    draws_latent: ClassVar[bool] = True
    scores_together: ClassVar[bool] = True

    latents: int = option(16, "M, draws of the random numbers; each is one more noisy copy of a row")
    share: float = option(0.5, "of the rows of a batch; the others are trained without random numbers")

    def __post_init__(self) -> None:
        at_least("latents", self.latents, 1)
        at_most("latents", self.latents, MAX_LATENTS)
        if not 0 < self.share <= 1:
            raise ValueError(f"share: {self.share} must be above 0 and at most 1; for 0 take objective.name=masked")

    @property
    def copies(self) -> float:
        return self.share * self.latents + 1 - self.share

    def loss(self, model: Transformer, batch: Batch, noise: NoiseKeys, block_size: int) -> Loss:
        masking = self.draw(batch, noise, block_size)
        n, has_z = len(batch.tokens), self._has_z(noise)
        some, mixed, keys = _only([i for i in range(n) if has_z[i]], batch, masking, noise)
        draws = mixed.masked.shape[1] * self.latents
        z = latent_noise(keys, model.config, some.tokens.shape[1], block_size, draws)
        total, latent_kl = mixture_loss(model, some.tokens, mixed, block_size, z, some.documents)
        if self.share < 1:
            others, plain, _ = _only([i for i in range(n) if not has_z[i]], batch, masking, noise)
            total = total + masked_loss(model, others.tokens, plain, block_size, others.documents).total
        return Loss(total, logged={"loss": total.detach(), "latent_kl": latent_kl})

    def _has_z(self, noise: NoiseKeys) -> list[bool]:
        """Choose rows evenly over the global batch, whatever part of it this is, and on from one batch to the next.

        What a batch leaves over is counted exactly: else a share of less than a row a batch would never be drawn.
        """
        exact = Fraction(self.share).limit_denominator(10**12)  # 3/10 of 0.3
        over = noise.step * noise.total * exact % 1
        share = exact if over else self.share
        last = [math.floor(i * share + over) for i in range(noise.first, noise.first + len(noise.row) + 1)]
        return [b > a for a, b in itertools.pairwise(last)]


def _only(rows: list[int], batch: Batch, masking: Masking, noise: NoiseKeys) -> tuple[Batch, Masking, NoiseKeys]:
    """Take some rows of a batch; of none the first, with weight 0: all ranks run as many forwards."""
    weight = masking.weight[rows] if rows else masking.weight[:1] * 0
    rows = rows or [0]
    documents = None if batch.documents is None else batch.documents[rows]
    some = replace(batch, tokens=batch.tokens[rows], is_target=batch.is_target[rows], documents=documents)
    return some, Masking(masking.masked[rows], weight), replace(noise, row=noise.row[rows])


def mixture_loss(
    model: Transformer, tokens: Tensor, masking: Masking, block_size: int, z: Tensor, documents: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run D M noisy streams beside one clean one, and weigh the mixture's loss of each block.

    Tokens, masking and z may be on the host, wherever the model is.

    Args:
        tokens: (b, N) int64.
        masking: (b, D, N); the weight is the same for all masked tokens of a block.
        z: (b, D M, N, k), of which draws d M to d M + M - 1 belong to masking d.

    Returns:
        the loss () with a gradient; and the part of it that is KL(r || uniform), without: 0 while z changes nothing.
    """
    b, n_draws, length = masking.masked.shape
    n_latents, n_blocks = z.shape[1] // n_draws, -(-length // block_size)
    masked = masking.masked.repeat_interleave(n_latents, dim=1)  # (b, D M, N)
    hidden = two_stream_hidden(model, tokens, masked, block_size, documents, latent=z)
    row, stream, position = masked.nonzero(as_tuple=True)
    device, matrix, banned = hidden.device, model.head_matrix(), model.banned_token_id
    targets = send(tokens[row, position], device)
    weights = send(masking.weight.repeat_interleave(n_latents, dim=1)[masked] / n_draws, device)
    block = send((row * masked.shape[1] + stream) * n_blocks + position // block_size, device)
    losses = cross_entropies(hidden, matrix, targets, banned)
    sums = losses.new_zeros(b * masked.shape[1] * n_blocks).index_add_(0, block, losses)
    log_r = sums.neg().view(b, n_draws, n_latents, n_blocks).log_softmax(2)
    r = log_r.exp()
    total, _ = weighted_cross_entropy(hidden, matrix, targets, weights * r.flatten()[block], banned)
    of_block = block_view(masking.weight * masking.masked, block_size, 0.0).amax(-1) / n_draws  # (b, D, g)
    kl = (r * (log_r + math.log(n_latents))).sum(2) * send(of_block, device)
    kl = kl.sum().to(total.dtype)
    return total + kl, kl
