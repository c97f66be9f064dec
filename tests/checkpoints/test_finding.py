"""Checkpoints are found again: what a path means, what takes the place of a damaged one."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
from checkpoint_folders import assert_whole, save

from hybrid.checkpoints.finding import find_checkpoint, read_best
from hybrid.checkpoints.saving import mark_best
from hybrid.storage.atomic import write_text_atomic
from hybrid.storage.folders import new_folder


def test_run_folder_checkpoints_folder_step_folder_and_saved_model_are_found(tmp_path):
    folder = tmp_path / "checkpoints"
    first, second = save(folder, 1), save(folder, 2)
    assert find_checkpoint(tmp_path) == find_checkpoint(str(folder)) == second
    assert find_checkpoint(first) == first
    with new_folder(tmp_path / "model") as model:
        (model / "model.safetensors").write_bytes(b"weights")
        (model / "tokenizer").mkdir()
        (model / "tokenizer" / "vocab.json").write_text("{}")
    assert find_checkpoint(tmp_path / "model") == tmp_path / "model"
    (tmp_path / "model" / "tokenizer" / "vocab.json").write_text("[]")
    with pytest.raises(ValueError, match=r"vocab\.json: its content is not what was saved"):
        find_checkpoint(tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()
    assert find_checkpoint(tmp_path / "model") == tmp_path / "model"


def test_what_is_no_checkpoint_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for path, message in (
        ("missing", "missing does not exist; give the folder of a run"),
        ("file", "file is a file; give the folder of a run"),
        ("run", "run holds no checkpoint; was the run stopped before its first save"),
    ):
        with pytest.raises(ValueError, match=message):
            find_checkpoint(tmp_path / path)


def test_a_folder_of_runs_names_them(tmp_path):
    for name in ("mine", "quickstart"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
    message = rf"^checkpoint: {tmp_path} is no run, but holds some \(mine, quickstart\); name one, e.g. {tmp_path}/mine"
    with pytest.raises(ValueError, match=message):
        find_checkpoint(tmp_path)
    for number in range(7):
        (tmp_path / f"a{number}" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"\(a0, a1, a2, a3, a4, and 4 more\)"):
        find_checkpoint(tmp_path)


def test_a_folder_of_models_names_them(tmp_path):
    for name, sign in (
        ("theirs", "config.json"),
        ("saved", "model.safetensors"),
        ("notes", "a.txt"),
        (".x", "config.json"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / sign).touch()
    with pytest.raises(
        ValueError, match=rf"is no model, but holds some \(saved, theirs\); name one, e.g. {tmp_path}/saved"
    ):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "typed, meant", [("mine", "runs/mine"), ("runs/mien", "runs/mine"), ("smollm2", "models/smollm2")]
)
def test_a_near_run_is_named(tmp_path, monkeypatch, typed, meant):
    for name in ("runs/mine", "models/smollm2"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"{typed} does not exist \(did you mean '{meant}'\?\); give the folder"):
        find_checkpoint(typed)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        ("model.safetensors", truncate, "truncated"),
        ("model.safetensors", flip, "SHA-256 differs"),
        ("ema.safetensors", Path.unlink, "is missing"),
        ("state.json", truncate, "truncated"),
        ("manifest.json", truncate, "is not valid JSON"),
        ("manifest.json", Path.unlink, "is missing"),
        ("manifest.json", lambda path: path.write_text('{"files": 3}'), "is not a manifest"),
    ],
)
def test_damage_falls_back_to_the_one_before_and_says_so(tmp_path, caplog, file, damage, reason):
    for step in (1, 2, 3):
        save(tmp_path, step)
    damage(tmp_path / "step-00000003" / file)
    with caplog.at_level(logging.WARNING):
        assert assert_whole(find_checkpoint(tmp_path)) == 2
    assert file in caplog.text
    assert reason in caplog.text
    assert "using step 2 (" in caplog.text
    with pytest.raises(ValueError, match=reason):  # asked for by name, nothing else will do
        find_checkpoint(tmp_path / "step-00000003")
    for step in (1, 2):
        truncate(tmp_path / f"step-0000000{step}" / "state.json")
    with pytest.raises(ValueError, match=r"none in .* is usable: .*start a new run") as caught:
        find_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"step-", b"../elsewhere\n", b"\xff\xfe\x00"])
def test_a_corrupt_pointer_falls_back_to_the_newest(tmp_path, caplog, content):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "latest").write_bytes(content)
    assert assert_whole(find_checkpoint(tmp_path)) == 2
    assert "latest: is corrupt" in caplog.text


def test_a_pointer_to_nothing_falls_back_and_a_good_one_is_silent(tmp_path, caplog):
    save(tmp_path, 1)
    save(tmp_path, 2)
    write_text_atomic(tmp_path / "latest", "step-00000001\n")
    assert assert_whole(find_checkpoint(tmp_path)) == 1
    assert caplog.text == ""
    write_text_atomic(tmp_path / "latest", "step-00000009\n")
    assert assert_whole(find_checkpoint(tmp_path)) == 2
    assert "step-00000009: is missing; using step 2" in caplog.text


def test_best_is_never_replaced_by_another(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert read_best(tmp_path) is None
    with pytest.raises(ValueError, match="best does not exist"):
        find_checkpoint(tmp_path / "best")
    for damaged in ("", "step-00000009\n0.5\n", "step-00000001"):
        (tmp_path / "best").write_text(damaged)
        with pytest.raises(ValueError, match="best names no checkpoint; use the latest"):
            find_checkpoint(tmp_path / "best")
    mark_best(tmp_path, tmp_path / "step-00000001", 0.5)
    truncate(tmp_path / "step-00000001" / "model.safetensors")
    with pytest.raises(ValueError, match="truncated"):
        find_checkpoint(tmp_path / "best")
    with pytest.raises(ValueError, match="best: nan is not finite"):
        mark_best(tmp_path, tmp_path / "step-00000002", math.nan)
