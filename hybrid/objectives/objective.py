"""The per-block masked ELBO: its estimators, and the loss of a batch.

With m_n the mean cross-entropy over the masked tokens when n of a block's L target tokens are masked at random,

    -log p(x^b | x^<b)  <=  sum_{n=1..L} E[m_n]

(Zheng et al. 2409.02908, prop. 3.1). An estimator draws which tokens to mask and gives each masked token a weight, such
that the expected weighted sum of cross-entropies is that bound. Add one to `ESTIMATORS` and it is a choice of
`objective.estimator`, documented by `--help` and tested for unbiasedness.

Shape legend: b rows, D noise draws, N text length, g blocks, B block size, L targets of a block, m masked tokens.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hybrid.model import Transformer
from hybrid.objectives.cross_entropy import Loss, masked_loss
from hybrid.objectives.estimators import ESTIMATORS, Clipped, Count, Estimator, Masking, Time
from hybrid.objectives.noise import NoiseKeys, block_view
from hybrid.objectives.proposals import PROPOSALS, Published
from hybrid.objectives.weightings import WEIGHTINGS, Elbo, Weighting, weigh
from hybrid.options import build, option

if TYPE_CHECKING:
    from hybrid.data.dataset import Batch

__all__ = ["ESTIMATORS", "Clipped", "Count", "Estimator", "Loss", "Masking", "Objective", "ObjectiveConfig", "Time",
           "build_estimator", "masked_loss"]  # fmt: skip


@dataclass
class ObjectiveConfig:
    block_size: Any = option(8, "an integer, a list of them (one is drawn per batch), or seq_len")
    estimator: Any = option("count", "how the ELBO is estimated: an entry of ESTIMATORS")
    weighting: Any = option("elbo", "what is trained: an entry of WEIGHTINGS; validation is always the ELBO")
    proposal: Any = option("published", "count form, how many tokens to mask: an entry of PROPOSALS")
    complementary: bool = option(False, "count form: draws come in pairs that mask a set and the rest of its block")
    schedule: Any = option("linear", "time form: an entry of SCHEDULES")
    stratified: bool = option(True, "spread counts (or times) evenly over the global batch")
    draws: int = option(1, "noise draws that share one clean pass")
    ar_weight: float = option(0.0, "of an autoregressive loss on the same clean pass (needs model.context=causal)")


def build_estimator(config: ObjectiveConfig) -> Estimator:
    """The estimator of a configuration; it is handed those of the group's noise that it has fields for."""
    spec = {"name": config.estimator} if isinstance(config.estimator, str) else config.estimator
    entry = ESTIMATORS.get(spec.get("name", "")) if isinstance(spec, dict) else None
    if entry is not None:
        fields = {f.name for f in dataclasses.fields(entry)}
        given = {"schedule": config.schedule, "complementary": config.complementary, "proposal": config.proposal}
        if isinstance(build(PROPOSALS, config.proposal, "objective.proposal"), Published):
            given["proposal"] = build(WEIGHTINGS, config.weighting, "objective.weighting")
        spec = {**{name: value for name, value in given.items() if name in fields}, **spec}
    return build(ESTIMATORS, spec, "objective.estimator")


@dataclass(frozen=True)
class Objective:
    """What a training step minimises: an estimator of the ELBO, a weighting, and perhaps an autoregressive loss."""

    estimator: Estimator
    weighting: Weighting = dataclasses.field(default_factory=Elbo)
    draws: int = 1
    stratified: bool = True
    ar_weight: float = 0.0

    @classmethod
    def of(cls, config: ObjectiveConfig) -> Objective:
        weighting = build(WEIGHTINGS, config.weighting, "objective.weighting")
        return cls(build_estimator(config), weighting, config.draws, config.stratified, config.ar_weight)

    @property
    def is_elbo(self) -> bool:
        """Whether the expectation of the loss is the ELBO."""
        return isinstance(self.weighting, Elbo) and not hasattr(self.estimator, "bias")

    def loss(self, model: Transformer, batch: Batch, noise: NoiseKeys, block_size: int) -> Loss:
        """Draw noise for a batch, where the batch is, and run the model on it."""
        masking = self.estimator.draw(noise, batch.is_target, block_size, self.draws, self.stratified)
        if not isinstance(self.weighting, Elbo):
            factor = weigh(self.weighting, masking.masked, batch.is_target, block_size)
            masking = Masking(masking.masked, masking.weight * factor)
        # At block size 1 the loss is the autoregressive one already.
        autoregressive = batch.is_target if self.ar_weight and block_size > 1 else None
        return masked_loss(model, batch.tokens, masking, block_size, batch.documents, autoregressive)

    @property
    def learner(self) -> Any:
        """The proposal, if it learns: it has `state` and `restore`; else None."""
        source = getattr(self.estimator, "source", None)
        return source if hasattr(source, "learn") else None

    def learn(self, block_size: int, blocks: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Show the losses of a step to a proposal that learns; `blocks` are those of `observed`, one per forward."""
        if self.learner is not None and block_size > 1:
            self.estimator.learn(block_size, *(torch.cat(parts) for parts in zip(*blocks, strict=True)))  # type: ignore[attr-defined]

    def observed(self, loss: Loss, is_target: Tensor, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Three (b, D, g): targets of the block, masked tokens, and their mean loss times its weight omega_n."""
        n, mean = loss.by_block(block_size)
        targets = block_view(is_target, block_size, False).sum(-1)[:, None].expand_as(n)
        for size in targets.unique().tolist():
            here = targets == size
            mean[here] *= self.weighting.of_counts(size).to(mean.device)[n[here]]
        return targets, n, mean
