"""Di4C: a mixture learns the dependence of tokens from its own later steps (Hayakawa et al. 2410.08709).

A model with a latent (`model.latent`) draws the masked tokens of a block x_t from a mixture of products,
p(x | x_t) = (1/M) sum_i prod_l p(x_l | x_t, z_i). A block learns

* **consistency**: the teacher takes one step to x_s, and the model goes on from there, x ~ p(. | x_s). The law of x is
  what p(. | x_t) should be, for it is what two steps give (`mixture.consistency`).
* **distillation** instead, where it has at most `small` masked tokens: KL(teacher || p(. | x_t, z)), averaged over z.
* **data**, always: the dependence of the true tokens, -w [log p(x | x_t) - sum_l log p_l(x_l | x_t)], and
  KL(teacher || p_l) of the marginals p_l. With t = n / L the share of the block that is masked,
  w = `correlation` / (1 + exp(-20 (t - 0.5))).

In the paper s = t - dt, with dt = 1/1024 or t/2 if that is less, and distillation is for t < 0.02. Here the time of a
block is its number n of masked tokens, and the teacher's step is from n to n - `per_step`, so dt = `per_step` / L. No
step is shorter than one token, the default; and one masked token alone has no dependence to learn, hence `small` = 1.

The latents with which x is drawn are others than those of p(. | x_t). With the same ones, as published, each x would be
scored by the part of the mixture that has drawn it, and the loss would be no cross-entropy of a law.

Which blocks are small is decided block by block, on what is drawn by the row: a batch may have any size, and ranks draw
different noise.

Shape legend: b rows, D noise draws, M latents, N text length, g blocks, G = b D g, m masked tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from hybrid import rng
from hybrid.device import send
from hybrid.model import Transformer
from hybrid.model.two_stream import two_stream_hidden
from hybrid.objectives.divergences import kl_forward
from hybrid.objectives.estimators import Masking
from hybrid.objectives.latent import MAX_LATENTS
from hybrid.objectives.mixture import Mixture, consistency
from hybrid.objectives.noise import NoiseKeys, block_view, latent_noise, position_uniforms
from hybrid.objectives.objective import Loss, MaskedObjective
from hybrid.objectives.teacher import TeacherCanvas, check_steps, log_probs_of
from hybrid.options import at_least, at_most, option, provided

if TYPE_CHECKING:
    from hybrid.data.batches import Batch


@dataclass(frozen=True)
class Di4C(MaskedObjective):
    """Learn as a mixture over the latent what a step of the teacher and the model's own next step give together."""

    draws_latent: ClassVar[bool] = True
    scores_together: ClassVar[bool] = True

    latents: int = option(8, "M, parts of the mixture; each is one more noisy copy of a row, in two passes")
    per_step: int = option(1, "tokens of a block that the teacher reveals before the model goes on")
    small: int = option(1, "blocks of at most so many masked tokens learn from the teacher alone")
    correlation: float = option(0.1, "largest weight of the dependence in the data")
    teacher: Transformer = provided()

    def __post_init__(self) -> None:
        at_least("latents", self.latents, 2)  # one part is a product: nothing would be dependent
        at_most("latents", self.latents, MAX_LATENTS)
        check_steps(per_step=self.per_step)
        at_least("small", self.small, 0)
        at_least("correlation", self.correlation, 0)

    @property
    def copies(self) -> int:
        return self.latents

    def loss(self, model: Transformer, batch: Batch, noise: NoiseKeys, block_size: int) -> Loss:
        masking = self.draw(batch, noise, block_size)
        start = TeacherCanvas.of(self.teacher, batch, masking.masked, noise, block_size, model.banned_token_id)
        log_teacher = start.predict()
        reader = Reader(model, batch, noise, block_size, self.latents, self.teacher.banned_token_id)
        samples, log_after = reader.continuations(start, start.reveal(log_teacher, self.per_step))
        mixture = reader.read(start)
        is_small, weight, of_data = (
            send(t.flatten(), model.device) for t in self._of_blocks(masking, batch.is_target, block_size)
        )
        data = send(batch.tokens[:, None].expand(masking.masked.shape)[masking.masked], model.device)
        each, marginal = (kl_forward(log_teacher, ours) for ours in (mixture.log_probs, mixture.log_marginals()))
        parts = {
            "consistency": ~is_small * consistency(mixture, samples, log_after),
            "distillation": is_small * mixture.by_block(each.mean(0)),
            "data": mixture.by_block(marginal) - of_data * mixture.correlation(data),
        }
        sums = {name: (weight * part).sum() for name, part in parts.items()}
        total = torch.stack(list(sums.values())).sum()
        return Loss(total, logged={"loss": total.detach(), **{name: value.detach() for name, value in sums.items()}})

    def _of_blocks(self, masking: Masking, is_target: Tensor, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """(b, D, g) each: whether the teacher alone teaches a block, its weight, and that of the data's dependence."""
        n = block_view(masking.masked, block_size, False).sum(-1)
        share = n / block_view(is_target, block_size, False).sum(-1)[:, None].clamp(min=1)
        weight = block_view(masking.weight * masking.masked, block_size, 0.0).amax(-1) / n.shape[1]
        return n <= self.small, weight, self.correlation * torch.sigmoid(20 * (share - 0.5))


@dataclass(frozen=True)
class Reader:
    """Reads canvases with M latents each."""

    model: Transformer
    batch: Batch
    noise: NoiseKeys
    block_size: int
    latents: int
    banned: int | None = None

    def read(self, canvas: TeacherCanvas, again: bool = False) -> Mixture:
        """Run M noisy streams for each of the canvas, with latents of their own; others where it is read `again`."""
        masked = canvas.masked.repeat_interleave(self.latents, dim=1)  # (b, D M, N)
        _, streams, length = masked.shape
        z = latent_noise(self.noise, self.model.config, length, self.block_size, streams, streams if again else 0)
        ids = canvas.ids(self.model.mask_token_id).repeat_interleave(self.latents, dim=1)
        hidden = two_stream_hidden(
            self.model, self.batch.tokens, masked, self.block_size, self.batch.documents, canvas=ids, latent=z
        )
        log_probs = log_probs_of(self.model, hidden, self.banned)
        number = torch.zeros(masked.shape, dtype=torch.long, device=masked.device)
        number[masked] = torch.arange(len(hidden), device=masked.device)
        parts = number.unflatten(1, (-1, self.latents)).movedim(2, 0)[:, canvas.masked]  # (M, m)
        return Mixture(log_probs[send(parts, hidden.device)], *self._blocks(canvas.masked, hidden.device))

    def _blocks(self, masked: Tensor, device: torch.device) -> tuple[Tensor, int]:
        """Number the blocks of all draws, G of them, and say in which each masked token is, (m,)."""
        row, draw, position = masked.nonzero(as_tuple=True)
        b, n_draws, length = masked.shape
        n = -(-length // self.block_size)
        return send((row * n_draws + draw) * n + position // self.block_size, device), b * n_draws * n

    @torch.no_grad()
    def continuations(self, start: TeacherCanvas, after: TeacherCanvas) -> tuple[Tensor, Tensor]:
        """Draw what the model makes of a canvas, once for each latent, and the law of each token.

        Returns:
            (M, m) ids of the tokens that were masked at the start, and their log-marginals, (m, V).
        """
        mixture = self.read(after, again=True)
        still, places = (
            send(flags.nonzero(as_tuple=True)[0], mixture.log_probs.device)
            for flags in (after.masked[start.masked], start.masked.flatten())
        )
        written = after.tokens.flatten()[places]  # (m,), those of the teacher's step
        samples = written.repeat(self.latents, 1)
        _, n_draws, length = after.masked.shape
        purpose = rng.TOKEN + rng.FURTHER * length  # that of no step of the teacher
        u = position_uniforms(self.noise, length, n_draws * self.latents, purpose)
        u = u.unflatten(1, (-1, self.latents)).movedim(2, 0)[:, after.masked]  # (M, s)
        drawn = rng.categorical(mixture.log_probs.flatten(0, 1).double(), send(u.flatten(), written.device))
        samples[:, still] = drawn.view(self.latents, -1)
        known = mixture.log_probs.new_full((len(written), mixture.log_probs.shape[-1]), -torch.inf)
        marginals = known.scatter(1, written[:, None], 0.0)
        return samples, marginals.index_copy(0, still, mixture.log_marginals())
