"""Build what is minimised from the group `objective` of a configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybrid.model import ModelConfig, Transformer
from hybrid.objectives.cross_entropy import MaskedCrossEntropy
from hybrid.objectives.di4c import Di4C
from hybrid.objectives.estimators import ESTIMATORS, Estimator
from hybrid.objectives.latent import Latent
from hybrid.objectives.objective import Objective
from hybrid.objectives.proposals import PROPOSALS, Published
from hybrid.objectives.sdtt import SelfDistillation
from hybrid.objectives.weightings import WEIGHTINGS, weighs_tokens
from hybrid.options import build, needs, option, shown, title

OBJECTIVES: dict[str, Any] = {
    "masked": MaskedCrossEntropy, "latent": Latent, "sdtt": SelfDistillation, "di4c": Di4C
}  # fmt: skip


@dataclass
class ObjectiveConfig:
    name: Any = option("masked", "what is minimised: an entry of OBJECTIVES; validation is always the ELBO")
    block_size: Any = option(8, "an integer, a list of them (one is drawn per batch), or seq_len")
    estimator: Any = option("count", "how the ELBO is estimated: an entry of ESTIMATORS")
    weighting: Any = option("elbo", "what is trained: an entry of WEIGHTINGS; validation is always the ELBO")
    proposal: Any = option("published", "count form, how many tokens to mask: an entry of PROPOSALS")
    complementary: bool = option(False, "count form: draws come in pairs that mask a set and the rest of its block")
    schedule: Any = option("linear", "time form: an entry of SCHEDULES")
    stratified: bool = option(True, "spread counts (or times) evenly over the global batch")
    draws: int = option(1, "noise draws that share one clean pass")
    ar_weight: float = option(0.0, "of an autoregressive loss on the same clean pass (needs model.context=causal)")
    teacher: str | None = option(None, "run or checkpoint of the model that the objective learns from, if it takes one")


def build_estimator(config: ObjectiveConfig) -> Estimator:
    """Build the estimator of a configuration; it is handed those of the group's keys that it has fields for."""
    spec = {"name": config.estimator} if isinstance(config.estimator, str) else config.estimator
    entry = ESTIMATORS.get(spec.get("name", "")) if isinstance(spec, dict) else None
    if entry is not None:
        fields = {f.name for f in dataclasses.fields(entry)}
        given = {"schedule": config.schedule, "complementary": config.complementary, "proposal": config.proposal}
        if isinstance(build(PROPOSALS, config.proposal, "objective.proposal"), Published):
            given["proposal"] = build(WEIGHTINGS, config.weighting, "objective.weighting")
        spec = {**{name: value for name, value in given.items() if name in fields}, **spec}
    estimator = build(ESTIMATORS, spec, "objective.estimator")
    needs("objective.estimator", estimator, "draw")
    return estimator


def build_objective(config: ObjectiveConfig, teacher: Transformer | None = None) -> Objective:
    """Build the objective of a configuration; `teacher` is the loaded model of `objective.teacher`."""
    check_teacher(config)
    check_weighting(config)
    provided = {
        "estimator": build_estimator(config),
        "weighting": build(WEIGHTINGS, config.weighting, "objective.weighting"),
        "draws": config.draws,
        "stratified": config.stratified,
        "ar_weight": config.ar_weight,
        "teacher": teacher,
    }
    objective = build(OBJECTIVES, config.name, "objective.name", provided)
    needs("objective.name", objective, "loss")
    return objective


def fields_of(config: ObjectiveConfig) -> Mapping[str, dataclasses.Field[Any]]:
    """Return the fields of the objective's entry by name: what it reads."""
    entry = type(build(OBJECTIVES, config.name, "objective.name"))
    return {f.name: f for f in dataclasses.fields(entry)}


def check_entry(config: ObjectiveConfig, model: ModelConfig, block_sizes: Sequence[int]) -> None:
    """Raise a ValueError if the objective that is named does not suit the teacher, the weighting or the model."""
    check_teacher(config)
    check_weighting(config)
    check_latent(config, model, block_sizes)


def check_teacher(config: ObjectiveConfig) -> None:
    """Refuse a teacher that nobody reads, and an objective that misses its own.

    Raises:
        ValueError: names objective.teacher, the objective, and the way out.
    """
    name = config.name if isinstance(config.name, str) else config.name["name"]
    wanted = fields_of(config).get("teacher")
    if wanted is None and config.teacher is not None:
        raise ValueError(
            f"objective.teacher: {shown(config.teacher)}, but objective.name = {name} takes no teacher; leave it out, "
            "or choose an objective that learns from one"
        )
    if wanted is not None and wanted.default is dataclasses.MISSING and config.teacher is None:
        raise ValueError(
            f"objective.teacher: null, but objective.name = {name} needs a teacher; give a run or a checkpoint, e.g. "
            "objective.teacher=runs/quickstart"
        )


def draws_latent(config: ObjectiveConfig) -> bool:
    """Return whether the objective draws the random numbers of MASK."""
    return getattr(build(OBJECTIVES, config.name, "objective.name"), "draws_latent", False)


def noisy_copies(config: ObjectiveConfig) -> int:
    """Return how many noisy copies of a token training has in one forward, on average over a batch."""
    objective = build(OBJECTIVES, config.name, "objective.name")
    return int(config.draws * getattr(objective, "copies", 1))


def check_weighting(config: ObjectiveConfig) -> None:
    """Refuse different weights for masked tokens of a block that are scored together.

    Raises:
        ValueError: names objective.weighting, the objective, and the way out.
    """
    objective = build(OBJECTIVES, config.name, "objective.name")
    weighting = build(WEIGHTINGS, config.weighting, "objective.weighting")
    if getattr(objective, "scores_together", False) and weighs_tokens(weighting):
        raise ValueError(
            f"objective.weighting: {title(config.weighting)} weighs masked tokens of a block differently, and "
            f"objective.name = {title(config.name)} scores them together; choose another weighting, e.g. elbo"
        )


def check_latent(config: ObjectiveConfig, model: ModelConfig, block_sizes: Sequence[int]) -> None:
    """Refuse an objective that trains random numbers in MASK for a model that has none, or that never reads MASK.

    Raises:
        ValueError: names the key, the objective, and the way out.
    """
    if not draws_latent(config):
        return
    trains = f"objective.name = {title(config.name)} trains random numbers in MASK"
    if not model.latent:
        raise ValueError(f"model.latent: 0, but {trains}; give it some, e.g. model.latent=4")
    if model.begin and max(block_sizes) == 1:
        raise ValueError(
            f"objective.block_size: 1, but {trains}, which model.prediction = {model.prediction} does not read at that "
            "size; take larger blocks, or objective.name=masked"
        )
