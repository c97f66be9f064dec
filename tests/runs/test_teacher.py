"""The teacher of a run: loaded frozen, refused where it does not fit, the same when the run goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import Configure
from training_toy import train

import hybrid
from hybrid.config import check, load_config
from hybrid.data.batches import Batch
from hybrid.model import Transformer
from hybrid.objectives import OBJECTIVES, Loss, Objective
from hybrid.objectives.noise import NoiseKeys
from hybrid.options import provided
from hybrid.sweep.plan import Planned
from hybrid.sweep.state import state_of

SEEN: list[Transformer] = []


@dataclass(frozen=True)
class Taught(Objective):
    """The squared distance of the embeddings."""

    teacher: Transformer = provided()

    def loss(self, model: Transformer, batch: Batch, noise: NoiseKeys, block_size: int) -> Loss:
        SEEN.append(self.teacher)
        return Loss(
            sum(((p - q) ** 2).sum() for p, q in zip(model.parameters(), self.teacher.parameters(), strict=True))
        )


@dataclass(frozen=True)
class MayBeTaught(Taught):
    """With or without."""

    teacher: Transformer | None = provided(None)

    def loss(self, model: Transformer, batch: Batch, noise: NoiseKeys, block_size: int) -> Loss:
        return Loss(sum((p**2).sum() for p in model.parameters()))


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(OBJECTIVES, "taught", Taught)
    monkeypatch.setitem(OBJECTIVES, "may_be_taught", MayBeTaught)
    yield
    SEEN.clear()


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["objective.teacher=runs/x"], "objective.teacher: 'runs/x', but objective.name = masked takes no teacher"),
        (["objective.name=taught"], "objective.teacher: null, but objective.name = taught needs a teacher"),
        (["objective.name=taught", "objective.teacher="], "objective.teacher: '' is empty"),
        (["objective.name={name: taught, teacher: runs/x}"], "objective.name.teacher: taught has no options"),
        (["objective.name={name: masked, draws: 2}"], "objective.name.draws: masked has no options"),
        (
            ["objective.name=taugt"],
            "objective.name: 'taugt' is not one of di4c, latent, masked, may_be_taught, sdtt, taught",
        ),
    ],
)
def test_a_teacher_that_nobody_reads_or_that_is_missing_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_config(None, overrides)
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


def test_what_an_objective_does_not_read_is_warned_of() -> None:
    overrides = ["objective.name=may_be_taught", "objective.weighting=cart", "objective.draws=2"]
    warnings = check(load_config(None, overrides))
    assert [warning.split(" is ")[0] for warning in warnings] == [
        "objective.name = may_be_taught", "objective.weighting = 'cart'", "objective.draws = 2",
    ]  # fmt: skip
    assert check(load_config(None, [])) == []


def test_it_is_frozen_and_stays_as_it_is(configure: Configure, trained: Path, tmp_path: Path) -> None:
    train(configure(tmp_path, "objective.name=taught", f"objective.teacher={trained}"))
    teacher = SEEN[0]
    assert not teacher.training and not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    for name, weight in hybrid.load(trained).model.state_dict().items():
        assert torch.equal(weight, teacher.state_dict()[name])
    assert all(one is teacher for one in SEEN) and len(SEEN) == 8


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["data.tokenizer=byte"], "has another tokenizer"),
        (["model.vocab_size=99"], " ids, the model 99; set model.vocab_size="),
        (["data.seq_len=64", "objective.block_size=64"], "was trained on rows of 32 tokens, in which no block of 64"),
        (["objective.teacher=no/such/run"], "objective.teacher: no/such/run does not exist"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(
    overrides: list[str], words: str, configure: Configure, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"^objective\.teacher: ") as caught:
        train(configure(tmp_path, "objective.name=taught", f"objective.teacher={trained}", *overrides))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "tiny").exists()


def test_a_resumed_run_has_the_teacher_that_it_had(configure: Configure, trained: Path, tmp_path: Path) -> None:
    teacher = shutil.copytree(trained, tmp_path / "teacher")
    words = ["objective.name=taught", f"objective.teacher={teacher}", "trainer.resume=auto"]
    train(configure(tmp_path, *words))
    config = configure(tmp_path, *words, "trainer.steps=9")
    train(config)
    assert state_of(Planned("tiny", config, [])).is_finished
    shutil.rmtree(teacher / "checkpoints" / "step-00000008")  # so that it is at step 4
    for link in ("latest", "best"):
        (teacher / "checkpoints" / link).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"is another model \(step 4\) than the run to resume .* from \(step 8\)"):
        train(configure(tmp_path, *words, "trainer.steps=10"))
    with pytest.raises(ValueError, match=r"learned from .*teacher at step 8, and the sweep wants .*, step 4"):
        state_of(Planned("tiny", config, []))
