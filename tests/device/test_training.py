"""A training step on a GPU: everything is on the device, nothing waits for it, and the losses are those of a CPU."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import sys
from typing import Any

import numpy as np
import pytest
import torch
from pretended_device import pretended_gpu
from toy import random_tokens, toy_model

from hybrid.data.batches import PackedTokens
from hybrid.data.packing import Counts
from hybrid.likelihoods.rows import bound
from hybrid.model import Transformer
from hybrid.model.attention import BACKENDS
from hybrid.objectives import (
    ESTIMATORS,
    OBJECTIVES,
    PROPOSALS,
    SCHEDULES,
    WEIGHTINGS,
    Objective,
    ObjectiveConfig,
    build_objective,
)
from hybrid.training.config import TrainerConfig
from hybrid.training.optim import EMA, OptimConfig, Optimizer
from hybrid.training.step import Stepper, StepResult

SEQ_LEN, ROWS = 12, 8
NEEDS = {"explicit": {"name": "explicit", "weights": [0.1, 0.2, 0.3, 0.4]}}


def takes_teacher(entry: Any) -> bool:
    return "teacher" in {f.name for f in dataclasses.fields(entry)}


CASES = {
    **{f"name-{name}": {"name": name} for name, entry in OBJECTIVES.items() if not takes_teacher(entry)},
    **{f"estimator-{name}": {"estimator": name, "draws": 2} for name in ESTIMATORS},
    **{f"weighting-{name}": {"weighting": name} for name in WEIGHTINGS},
    **{f"proposal-{name}": {"proposal": NEEDS.get(name, name)} for name in PROPOSALS},
    **{f"schedule-{name}": {"estimator": "time", "schedule": name} for name in SCHEDULES},
    "pairs": {"complementary": True, "draws": 2},
    "autoregressive": {"ar_weight": 0.5},
}


def packed(document_mask: bool = False) -> PackedTokens:
    """Rows in which a third of the tokens do not count; the last id ends a document."""
    tokens = random_tokens(40, SEQ_LEN, seed=1).numpy().astype(np.uint16)
    is_target = (np.random.default_rng(0).random(tokens.shape) < 0.7).astype(np.uint8)
    n = int(is_target.sum())
    return PackedTokens(
        tokens.ravel(), is_target.ravel(), Counts(1, tokens.size, tokens.size, n, n), SEQ_LEN, 6, document_mask
    )


def stepper(model: Transformer, objective: Objective, split: PackedTokens, **optim: Any) -> Stepper:
    """Two micro-batches a step; an average of the weights."""
    config = OptimConfig(**optim)
    trainer = TrainerConfig(batch_tokens=ROWS * SEQ_LEN, micro_batch_tokens=ROWS * SEQ_LEN // 2)
    return Stepper(
        model, Optimizer(model, config), EMA(model, 0.9), split, objective, [4], config, trainer, seed=0,
        precision=contextlib.nullcontext,
    )  # fmt: skip


def steps(model: Transformer, objective: Objective, split: PackedTokens, n: int = 2, **optim: Any) -> list[StepResult]:
    one = stepper(model, objective, split, **optim)
    return [one(step) for step in range(n)]


@pytest.mark.thin(9)
@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("prediction", ["in_place", "next_token"])
@pytest.mark.parametrize("objective", CASES.values(), ids=CASES)
def test_a_step_waits_nowhere_and_is_that_of_a_cpu(objective: dict[str, Any], prediction: str, name: str) -> None:
    loss, model, split = build_objective(ObjectiveConfig(**objective)), toy_model("causal", prediction), packed(True)
    expected = [result.losses for result in steps(copy.deepcopy(model), loss, split, name=name)]
    with pretended_gpu() as gpu:
        ours = model.to("cuda")
        gpu.waits.clear()
        results = steps(ours, loss, split, name=name)
        assert gpu.waits == {}
        for result, losses in zip(results, expected, strict=True):
            assert result.losses == pytest.approx(losses, rel=1e-9)
        assert gpu.places() == {("training/step.py", "StepResult._read")}


@pytest.mark.parametrize("name", ["from_teacher", *(n for n, entry in OBJECTIVES.items() if takes_teacher(entry))])
def test_a_teacher_waits_nowhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "from_teacher", None)  # so that what the module registers goes again
    importlib.import_module("user_distillation")
    sys.modules.pop("user_distillation")  # other tests import it for the first time
    config = ObjectiveConfig(name=name, teacher="a run")
    student, teacher, split = toy_model(seed=1, latent=2), toy_model().requires_grad_(False), packed()
    expected = [r.losses for r in steps(copy.deepcopy(student), build_objective(config, teacher), split)]
    with pretended_gpu() as gpu:
        student, loss = student.to("cuda"), build_objective(config, teacher.to("cuda"))
        gpu.waits.clear()
        results = steps(student, loss, split)
        assert gpu.waits == {}
        for result, losses in zip(results, expected, strict=True):
            assert result.losses == pytest.approx(losses, rel=1e-9)


@pytest.mark.parametrize("name", [name for name in BACKENDS if name not in ("sdpa", "flex", "xformers")])
@pytest.mark.parametrize("documents", [False, True])
def test_no_backend_waits(name: str, documents: bool) -> None:
    """Those whose kernels are torch's own; flex and xformers compile or bring theirs."""
    with pretended_gpu() as gpu:
        model = toy_model("block_causal").to("cuda")
        model.attend = BACKENDS[name](torch.device("cuda"), True)
        gpu.waits.clear()
        steps(model, build_objective(ObjectiveConfig()), packed(documents), n=1)
        assert gpu.waits == {}


VALIDATION = {
    ("data/batches.py", "Batch.to"): "rows are sent, a batch at a time",
    ("likelihoods/rows.py", "_batches"): "which of them count",
    ("objectives/estimators.py", "Count._probabilities"): "the masks are drawn where the rows are; a table per length",
    ("model/masks.py", "TwoStreamRows.read_masked"): "how many tokens are masked is the size of what the head gets",
    ("objectives/cross_entropy.py", "masked_loss"): "likewise",
    ("likelihoods/elbo.py", "monte_carlo"): "likewise",
    ("likelihoods/exact.py", "per_row"): "losses go back to where the masks are",
    ("objectives/cross_entropy.py", "MaskedLoss.by_block"): "likewise",
    ("objectives/cross_entropy.py", "MaskedLoss.by_count"): "losses are counted by the number of masked tokens",
    ("likelihoods/rows.py", "bound"): "the result is read, once",
}
"""Where validation may wait: it runs every few hundred steps, and needs its result. (file, function) and the reason."""


def test_validation_is_that_of_a_cpu() -> None:
    model, split = toy_model().eval(), packed(True)
    options: dict[str, Any] = {"draws": 2, "batch_rows": 16, "precision": contextlib.nullcontext}
    expected = [bound(model, split, size, **options) for size in (1, 4)]
    with pretended_gpu() as gpu:
        ours = model.to("cuda")
        got = [bound(ours, split, size, **options) for size in (1, 4)]
    assert gpu.places() == VALIDATION.keys()
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.nats_per_token == pytest.approx(theirs.nats_per_token, rel=1e-9)
        assert ours.by_count == pytest.approx(theirs.by_count, rel=1e-9)
