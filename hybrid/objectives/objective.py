"""An objective: what a training step minimises. Anything that turns a batch into a `Loss` is one.

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
    """What a training step minimises."""

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
        if isinstance(self.weighting, Elbo):
            return masking
        factor = weigh(self.weighting, masking.masked, batch.is_target, block_size)
        return Masking(masking.masked, masking.weight * factor)
