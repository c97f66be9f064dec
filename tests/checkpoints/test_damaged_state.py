"""State that does not fit is refused in one line that names it: weights, averages, optimizer, counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, Configure
from safetensors.torch import load_file, save_file
from torch import Tensor
from training_toy import train

import hybrid
from hybrid.checkpoints.tensor_files import load_group
from hybrid.evaluation.evaluation_model import load_evaluation_model
from hybrid.runs.run import Run
from hybrid.storage.folders import new_folder

Damage = Callable[[dict[str, Tensor]], Any]
LAST = "checkpoints/step-00000008"


def reseal(step: Path, change: Callable[[Path], None]) -> None:
    """Change files of a checkpoint as if it had been saved so: its manifest is true of them."""
    with new_folder(step, overwrite=True) as folder:
        for file in step.iterdir():
            if file.name != "manifest.json":
                shutil.copy(file, folder / file.name)
        change(folder)


def damage_tensors(step: Path, group: str, damage: Damage) -> None:
    def change(folder: Path) -> None:
        tensors = load_file(folder / f"{group}.safetensors")
        damage(tensors)
        save_file(tensors, folder / f"{group}.safetensors")

    reseal(step, change)


def damage_state(step: Path, damage: Callable[[dict[str, Any]], Any]) -> None:
    def change(folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text())
        replaced = damage(state)
        (folder / "state.json").write_text(json.dumps(state if replaced is None else replaced))

    reseal(step, change)


def put(name: str, value: Any) -> Damage:
    """Replace a tensor by a function of it."""
    return lambda tensors: tensors.__setitem__(name, value(tensors[name]).contiguous())


def with_one(number: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[-1] = number
        return tensor

    return change


def one_line(caught: pytest.ExceptionInfo[ValueError]) -> str:
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600
    return text


WEIGHT = "layers.0.wq.weight"
WEIGHTS = [
    (put(WEIGHT, with_one(torch.nan)), "layers.0.wq.weight is not finite"),
    (put(WEIGHT, with_one(torch.inf)), "layers.0.wq.weight is not finite"),
    (put("final_norm.weight", with_one(-torch.inf)), "final_norm.weight is not finite"),
    (put(WEIGHT, lambda t: t.to(torch.int8)), "layers.0.wq.weight holds int8 instead of float32"),
    (put(WEIGHT, lambda t: t > 0), "layers.0.wq.weight holds bool instead of float32"),
    (put(WEIGHT, lambda t: t.to(torch.complex64)), "layers.0.wq.weight holds complex64 instead of float32"),
    (put(WEIGHT, lambda t: t.to(torch.float8_e4m3fn)), "layers.0.wq.weight holds float8_e4m3fn instead of float32"),
    (put(WEIGHT, lambda t: t[:-1]), "of another shape layers.0.wq.weight [15, 16] instead of [16, 16]"),
    (put(WEIGHT, lambda t: t[None]), "of another shape layers.0.wq.weight [1, 16, 16] instead of [16, 16]"),
    (lambda tensors: tensors.pop(WEIGHT), "missing layers.0.wq.weight"),
    (lambda tensors: tensors.update(extra=torch.ones(1)), "unexpected extra"),
]


@pytest.mark.thin(4)
@pytest.mark.parametrize("damage, words", WEIGHTS)
def test_weights_that_do_not_fit_are_refused_wherever_they_are_read(
    damage: Damage, words: str, configure: Configure, copy_of_trained: Path, tmp_path: Path
) -> None:
    step = copy_of_trained / LAST
    folder = copy_of_trained.parent
    damage_tensors(step, "ema", damage)  # what `load` takes
    for read in (
        lambda: hybrid.load(copy_of_trained),
        lambda: Run.of(configure(folder, f"trainer.init_from={copy_of_trained}", "run.name=other")),
        lambda: train(configure(folder, "trainer.resume=auto", "trainer.steps=9")),
    ):
        with pytest.raises(ValueError) as caught:
            read()
        assert words in one_line(caught)
    shutil.copy(step / "ema.safetensors", tmp_path / "model.safetensors")  # a saved model without a manifest
    shutil.copy(copy_of_trained / "config.yaml", tmp_path)
    shutil.copytree(copy_of_trained / "tokenizer", tmp_path / "tokenizer")
    with pytest.raises(ValueError) as caught:
        hybrid.load(tmp_path)
    assert words in one_line(caught)


def test_the_damaged_checkpoint_is_named_with_the_one_to_take_instead(
    configure: Configure, copy_of_trained: Path, tmp_path: Path
) -> None:
    step, folder = copy_of_trained / LAST, copy_of_trained.parent
    before = step.with_name("step-00000004")
    for group, name in (("ema", WEIGHT), ("model", WEIGHT), ("optimizer", AVERAGE)):
        damage_tensors(step, group, put(name, with_one(torch.nan)))
    lm = hybrid.load(before)
    resumed = configure(folder, "trainer.resume=auto", "trainer.steps=9")
    reads: list[tuple[str, Callable[[], Any]]] = [
        ("", lambda: hybrid.load(copy_of_trained)),
        ("", lambda: Run.of(configure(folder, f"trainer.init_from={copy_of_trained}", "run.name=other"))),
        ("", lambda: train(resumed)),
        ("planner: ", lambda: lm.generate([[1]], 2, planner=copy_of_trained)),
        ("judge: ", lambda: load_evaluation_model(copy_of_trained)),
    ]
    told = f"{step}: checkpoint is damaged: {WEIGHT} is not finite; "
    for key, read in reads:
        with pytest.raises(ValueError) as caught:
            read()
        assert one_line(caught) == f"{key}{told}take {before}, or restore it from a copy"
    (before / "state.json").write_text("{}")  # this one is damaged, too
    with pytest.raises(ValueError) as caught:
        hybrid.load(copy_of_trained)
    assert one_line(caught) == f"{told}restore it from a copy: there is no other beside it"
    saved = lm.save(tmp_path / "saved")
    (saved / "manifest.json").unlink()
    shutil.copy(step / "ema.safetensors", saved / "model.safetensors")
    with pytest.raises(ValueError) as caught:
        hybrid.load(saved)
    assert one_line(caught) == f"{told.replace(str(step), str(saved))}restore it from a copy, or save it again"


def test_a_damaged_optimizer_names_its_checkpoint_too(configure: Configure, copy_of_trained: Path) -> None:
    damage_tensors(copy_of_trained / LAST, "optimizer", lambda tensors: tensors.pop(AVERAGE))
    with pytest.raises(ValueError) as caught:
        train(configure(copy_of_trained.parent, "trainer.resume=auto", "trainer.steps=9"))
    told = "optimizer: what the checkpoint holds does not fit: missing exp_avg/layers.0.wq.weight"
    assert one_line(caught).startswith(f"{copy_of_trained / LAST}: {told}; take {copy_of_trained}/checkpoints/step-")


def test_the_weights_of_a_run_without_averages_are_looked_at_too(configure: Configure, copy_of_trained: Path) -> None:
    damage_tensors(copy_of_trained / LAST, "model", put(WEIGHT, with_one(torch.nan)))
    with pytest.raises(ValueError, match=r"layers\.0\.wq\.weight is not finite"):
        train(configure(copy_of_trained.parent, "trainer.resume=auto", "trainer.steps=9"))


def test_weights_in_another_float_are_read(copy_of_trained: Path) -> None:
    before = hybrid.load(copy_of_trained).model.state_dict()[WEIGHT]
    damage_tensors(copy_of_trained / LAST, "ema", put(WEIGHT, lambda t: t.bfloat16()))
    assert torch.equal(hybrid.load(copy_of_trained).model.state_dict()[WEIGHT], before.bfloat16().float())


AVERAGE = f"adamw/exp_avg/{WEIGHT}"
OPTIMIZER = [
    (put(AVERAGE, lambda t: t[:3]), "exp_avg/layers.0.wq.weight has shape [3, 16] instead of [16, 16]"),
    (put(AVERAGE, lambda t: t.sum()), "exp_avg/layers.0.wq.weight has shape [] instead of [16, 16]"),
    (put(AVERAGE, with_one(torch.nan)), "exp_avg/layers.0.wq.weight is not finite"),
    (put(AVERAGE, lambda t: t.long()), "exp_avg/layers.0.wq.weight holds int64 instead of float32"),
    (put(f"adamw/step/{WEIGHT}", lambda t: t.expand(2)), "step/layers.0.wq.weight has shape [2] instead of []"),
    (lambda tensors: tensors.pop(AVERAGE), "missing exp_avg/layers.0.wq.weight"),
    (
        lambda tensors: [tensors.pop(name) for name in list(tensors) if name.endswith(WEIGHT)],
        "missing step/layers.0.wq.weight, missing exp_avg/layers.0.wq.weight",
    ),
    (lambda tensors: tensors.update({"adamw/exp_avg/other": torch.ones(1)}), "unexpected adamw/exp_avg/other"),
    (lambda tensors: tensors.update({f"adamw/odd/{WEIGHT}": torch.ones(1)}), "unexpected odd/layers.0.wq.weight"),
    (lambda tensors: tensors.update({"muon/odd": torch.ones(1)}), "['muon/odd'], which no part of it has"),
    (lambda tensors: tensors.update({"adamw/odd": torch.ones(1)}), "unexpected adamw/odd"),
]


@pytest.mark.thin(4)
@pytest.mark.parametrize("damage, words", OPTIMIZER)
def test_a_state_of_the_optimizer_that_does_not_fit_is_refused(
    damage: Damage, words: str, configure: Configure, copy_of_trained: Path
) -> None:
    damage_tensors(copy_of_trained / LAST, "optimizer", damage)
    with pytest.raises(ValueError) as caught:
        train(configure(copy_of_trained.parent, "trainer.resume=auto", "trainer.steps=9"))
    assert words in one_line(caught)


def at(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: Any) -> None:
        *way, last = path
        for key in way:
            state = state[key]
        state[last] = value

    return change


DEEP: Any = []
for _ in range(50):
    DEEP = [DEEP]
STATES = [
    (lambda state: {}, "step: None instead of a number of steps"),
    (lambda state: [], "[] instead of a JSON object"),
    (lambda state: 3, "3 instead of a JSON object"),
    (at("step", value="8"), "step: '8' instead of a number of steps"),
    (at("step", value=7), "of step 7"),
    (at("skipped", value=-1), "skipped: -1"),
    (at("bad", value=True), "bad: True"),
    (lambda state: {**state, "optimizer": {}}, "optim.name: the checkpoint was trained with none, not"),
    (lambda state: {**state, "optimizer": DEEP}, "instead of what describes one"),
    (lambda state: {key: value for key, value in state.items() if key != "optimizer"}, "instead of what describes one"),
    (at("optimizer", "adamw", value=None), "instead of what describes one"),
    (at("optimizer", "adamw", "groups", value=[1, 2]), "parameter groups differ"),
    (at("optimizer", "adamw", "groups", 0, "lr", value="high"), "lr: 'high'"),
    (at("optimizer", "adamw", "groups", 0, "betas", value=[0.9]), "betas: [0.9]"),
    (at("optimizer", "adamw", "groups", 0, "invented", value=1), "invented: 1"),
    (at("optimizer", "adamw", "numbers", value={WEIGHT: 3}), "not a mapping of mappings"),
    (at("optimizer", "adamw", "numbers", value={"other": {"a": 1}}), "unexpected other"),
    (at("optimizer", "adamw", "numbers", value={WEIGHT: {"a": 1}}), "unexpected a/layers.0.wq.weight"),
]


@pytest.mark.thin(6)
@pytest.mark.parametrize("damage, words", STATES)
def test_a_state_json_that_does_not_fit_is_refused(
    damage: Callable[[dict[str, Any]], Any], words: str, configure: Configure, copy_of_trained: Path
) -> None:
    damage_state(copy_of_trained / LAST, damage)
    with pytest.raises(ValueError) as caught:
        train(configure(copy_of_trained.parent, "trainer.resume=auto", "trainer.steps=9"))
    assert words in one_line(caught)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"files":' * 50_000, "{}", "[]", "7", '{"files": {"a": [1]}}'])
def test_a_manifest_that_is_none_is_one_line(content: str, command: Command, copy_of_trained: Path, overrides) -> None:
    for step in (copy_of_trained / "checkpoints").glob("step-*"):
        (step / "manifest.json").write_text(content)
    assert "none in" in command("train.py", *overrides(copy_of_trained.parent), "trainer.resume=auto").error


def test_parts_of_ranks_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    def write(*parts: Tensor, world: int = 2) -> None:
        for file in tmp_path.iterdir():
            file.unlink()
        for rank, part in enumerate(parts):
            save_file({"w": part}, tmp_path / f"model.{rank:05d}-of-{world:05d}.safetensors")

    write(torch.ones(2, 3), torch.zeros(1, 3))
    assert load_group(tmp_path, "model")["w"].tolist() == [[1.0] * 3] * 2 + [[0.0] * 3]
    for parts in ([torch.ones(2, 3), torch.ones(2, 4)], [torch.ones(2), torch.ones(2).half()], [torch.ones(())] * 2):
        write(*parts)
        with pytest.raises(ValueError, match=r"^w: its parts of 2 ranks do not fit together"):
            load_group(tmp_path, "model")["w"]
    write(torch.ones(2), torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match="3 of the 2 files of model are there"):
        load_group(tmp_path, "model")
    write(torch.ones(2), torch.ones(2), world=3)
    with pytest.raises(ValueError, match="2 of the 3 files of model are there"):
        load_group(tmp_path, "model")
