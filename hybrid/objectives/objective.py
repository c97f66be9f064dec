"""An objective: what a training step minimises. Anything with a `loss` that turns a batch into a `Loss` is one.

    class Mine(Objective):
        def loss(self, model, batch, noise, block_size):
            return Loss(...)

    OBJECTIVES["mine"] = Mine          # objective.name=mine

A field of an objective is an option of `objective.name`, unless it is declared by `provided`. Provided are, by name:
`estimator`, `weighting`, `draws`, `stratified` and `ar_weight`, made of the keys of the group `objective`; and
`teacher`, the frozen model of `objective.teacher`. An objective without a field `teacher` refuses that key, one whose
field has no default (`provided()`) needs it, any other may do without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from hybrid.model import Transformer
from hybrid.objectives.estimators import Count, Estimator, Masking
from hybrid.objectives.noise import NoiseKeys
from hybrid.objectives.weightings import Elbo, Weighting, weigh
from hybrid.options import provided

if TYPE_CHECKING:
    from hybrid.data.batches import Batch


@dataclass(frozen=True)
class Loss:
    """The loss of a batch, as sums over its target tokens (in nats, where it is a likelihood), averaged over draws.

    Divided by the number of target tokens of the *global* batch, a sum is this batch's share of the loss, whatever the
    accumulation or the ranks.

    `total` is minimised. `logged` is what training shows: NAME -> (), as train/NAME, the first of them also beside the
    progress. Left empty it is `total`, as train/loss. At one block size the names are always the same.
    """

    total: Tensor  # () with a gradient
    logged: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)


class Objective(Protocol):
    """What a training step minimises.

    Attributes that an objective may have:
        draws_latent: True for one that draws the random numbers of `model.latent`; it is then refused for a model that
            has none.
        scores_together: True for one that scores the masked tokens of a block together; weightings in which they differ
            are then refused.
        copies: how many noisy streams it has for each noise draw, on average over the rows of a batch; else 1.
    """

    @property
    def is_elbo(self) -> bool:
        """Whether the expectation of the loss is the ELBO."""
        return False

    def loss(self, model: Transformer, batch: Batch, noise: NoiseKeys, block_size: int) -> Loss:
        """Run the model on a batch.

        The batch may be on the host, wherever the model is. All that is random is a function of `noise`
        (`hybrid.rng.uniform`), so that neither ranks nor accumulation change it. Called under autocast, where training
        uses it. Under DDP every parameter must take part.
        """
        ...


def is_elbo(objective: Objective) -> bool:
    """Return whether the expectation of the loss is the ELBO; that of an objective that does not say so is not."""
    return getattr(objective, "is_elbo", False)


def checked(loss: Loss, objective: Objective) -> Loss:
    """Return what an objective gave for a batch.

    Raises:
        ValueError: it is no `Loss` of scalar tensors; the message names the objective.
    """
    name = type(objective).__name__
    if not isinstance(loss, Loss):
        raise ValueError(
            f"objective.name: loss of {name} gave a {type(loss).__name__}; it must be a hybrid.objectives.Loss, e.g. "
            "Loss(total)"
        )
    for key, value in {"total": loss.total, **loss.logged}.items():
        if not isinstance(value, Tensor) or value.shape != ():
            what = f"{tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ValueError(f"objective.name: loss of {name} gave {what} as {key!r}; it must be a tensor of shape ()")
    return loss


COUNT, ELBO = Count(), Elbo()


@dataclass(frozen=True)
class MaskedObjective(Objective):
    """Base of the objectives that mask tokens at random, as the keys of the group `objective` say."""

    estimator: Estimator = provided(COUNT)
    weighting: Weighting = provided(ELBO)
    draws: int = provided(1)
    stratified: bool = provided(True)

    def draw(self, batch: Batch, noise: NoiseKeys, block_size: int) -> Masking:
        """Draw which tokens are masked, where the batch is, and the weight of each."""
        masking = self.estimator.draw(noise, batch.is_target, block_size, self.draws, self.stratified)
        _check_masking(masking, self.estimator, batch.is_target)
        if isinstance(self.weighting, Elbo):
            return masking
        factor = weigh(self.weighting, masking.masked, batch.is_target, block_size)
        return Masking(masking.masked, masking.weight * factor)


def _check_masking(masking: Masking, estimator: Estimator, is_target: Tensor) -> None:
    """Raise a ValueError for what cannot mask rows of `is_target` (b, N); the message names the estimator."""
    name = f"objective.estimator: draw of {type(estimator).__name__} gave"
    if not isinstance(masking, Masking):
        raise ValueError(f"{name} a {type(masking).__name__}; it must be a Masking(masked, weight)")
    rows, length = is_target.shape
    masked, weight = masking.masked, masking.weight
    fits = masked.dim() == 3 and masked.shape[::2] == is_target.shape and masked.dtype == torch.bool
    if not fits or weight.shape != masked.shape:
        raise ValueError(
            f"{name} masked {masked.dtype} {tuple(masked.shape)} and weight {tuple(weight.shape)}; masked must be "
            f"torch.bool ({rows}, draws, {length}), and weight of its shape"
        )
