"""Checkpoints: whole or absent, whatever fails; found again; exact."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import resource
from pathlib import Path

import pytest
import torch
from checkpoint_folders import assert_whole, debris, save
from safetensors import SafetensorError

from hybrid.checkpoints import saving, tensor_files
from hybrid.checkpoints.finding import find_checkpoint, list_checkpoints, read_best, read_state, step_of
from hybrid.checkpoints.saving import mark_best, prune, save_checkpoint
from hybrid.checkpoints.tensor_files import load_tensors
from hybrid.storage import atomic, folders
from hybrid.storage.atomic import write_json_atomic, write_text_atomic
from hybrid.storage.folders import new_folder, verify_folder
from hybrid.storage.json_files import read_json, to_json


def test_round_trip_of_all_kinds_of_tensors_without_pickle(tmp_path):
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    tensors = {
        "double": torch.randn(3, dtype=torch.float64),
        "half": torch.randn(5).bfloat16(),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 2),
        "whole": base,
        "same memory": base,
        "view": base[:, 1:3],
        "transposed": base.T,
    }
    found = save_checkpoint(tmp_path, 7, {"model": tensors}, {"a": [1, 2.5, None, "x"], "b": {"c": True}})
    loaded = load_tensors(found / "model.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name
    assert read_state(found) == {"a": [1, 2.5, None, "x"], "b": {"c": True}}
    assert found.name == "step-00000007"
    assert sorted(path.name for path in found.iterdir()) == ["manifest.json", "model.safetensors", "state.json"]
    assert (tmp_path / "latest").read_text() == "step-00000007\n"


def test_the_same_step_is_replaced(tmp_path):
    save(tmp_path, 5)
    save_checkpoint(tmp_path, 5, {"model": {"weight": torch.ones(2)}}, {"second": True})
    found = find_checkpoint(tmp_path)
    assert read_state(found) == {"second": True}
    assert not (found / "ema.safetensors").exists()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000005"]
    assert debris(tmp_path) == []


def disk_full(*_arguments, **_options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def disk_full_in_safetensors(tensors, path):
    Path(path).write_bytes(b"half of it")
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("step", [2, 3], ids=["same step", "new step"])
@pytest.mark.parametrize(
    ("module", "name", "failure"),
    [
        (tensor_files, "save_file", disk_full_in_safetensors),
        (saving, "write_json_atomic", disk_full),
        (atomic.os, "fsync", disk_full),
        (folders.os, "rename", disk_full),
        (atomic.os, "replace", disk_full),
        (atomic.Path, "mkdir", disk_full),
        (atomic.Path, "write_text", disk_full),
    ],
)
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, module, name, failure, step):
    save(tmp_path, 1)
    save(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, failure)
        with pytest.raises(OSError, match="No space left on device; what was saved before is unchanged") as caught:
            save(tmp_path, step)
    assert caught.value.errno == errno.ENOSPC
    assert "\n" not in str(caught.value)
    assert (tmp_path / "latest").read_text() == "step-00000002\n"
    assert [assert_whole(path) for path in list_checkpoints(tmp_path)][:2] == [1, 2]
    assert assert_whole(find_checkpoint(tmp_path)) == 2
    assert debris(tmp_path) == []
    assert assert_whole(save(tmp_path, step)) == step


def test_a_full_disk_between_the_two_renames_puts_the_old_checkpoint_back(tmp_path, monkeypatch):
    save(tmp_path, 2)
    rename = os.rename
    calls = []

    def second_fails(source, target):
        calls.append(target)
        if len(calls) == 2:
            disk_full()
        rename(source, target)

    monkeypatch.setattr(folders.os, "rename", second_fails)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    assert len(calls) == 3
    assert assert_whole(tmp_path / "step-00000002") == 2
    assert debris(tmp_path) == []


def test_a_limit_of_the_system_that_the_writer_meets_for_real(tmp_path):
    save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(OSError, match="step-00000002: could not be written: File too large") as caught:
            save(tmp_path, 2, size=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert assert_whole(find_checkpoint(tmp_path)) == 1
    assert debris(tmp_path) == []


def test_state_that_json_cannot_hold_is_refused_by_name(tmp_path):
    save(tmp_path, 1)
    for state, where in (({"best": {"nelbo": math.inf}}, r"best\.nelbo: inf"), ({"x": [0, {1, 2}]}, r"x\[1\]: a set")):
        with pytest.raises(ValueError, match=where):
            save_checkpoint(tmp_path, 2, {}, state)
    assert assert_whole(find_checkpoint(tmp_path)) == 1
    assert debris(tmp_path) == []


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


def test_prune_keeps_the_last_saved_the_latest_and_the_best(tmp_path):
    for step in range(1, 7):
        save(tmp_path, step)
    mark_best(tmp_path, tmp_path / "step-00000002", 1.25)
    (tmp_path / ".step-00000001.77.tmp").mkdir()  # a kill while an old one was removed
    prune(tmp_path, 2)
    assert not list(tmp_path.glob(".step*"))
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [2, 5, 6]
    assert read_best(tmp_path) == (tmp_path / "step-00000002", 1.25)
    assert find_checkpoint(tmp_path / "best") == tmp_path / "step-00000002"
    # Back to step 2 and on: what counts is when a checkpoint was saved, so the abandoned 5 and 6 go first.
    save(tmp_path, 3)
    save(tmp_path, 4)
    prune(tmp_path, 2)
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [2, 3, 4]
    write_text_atomic(tmp_path / "latest", "step-00000003\n")
    prune(tmp_path, 1)
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [2, 3, 4]
    with pytest.raises(ValueError, match="keep_last: 0"):
        prune(tmp_path, 0)


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


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="exists and was not written by hybrid"), new_folder(tmp_path / "mine"):
        pass
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    for text in ("first", "second"):
        with new_folder(tmp_path / "empty") as folder:
            (folder / "a.txt").write_text(text)
    verify_folder(tmp_path / "empty")
    assert (tmp_path / "empty" / "a.txt").read_text() == "second"


def test_json_has_no_nan(tmp_path):
    value = {"a": math.nan, "b": [1.0, -math.inf], "c": torch.tensor(2.5), "d": Path("x"), "e": torch.tensor([1, 2])}
    assert json.loads(to_json(value)) == {"a": None, "b": [1.0, None], "c": 2.5, "d": "x", "e": [1, 2]}
    with pytest.raises(ValueError, match=r"b\[1\]: -inf is not finite"):
        to_json({"b": value["b"]}, strict=True)
    write_json_atomic(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json")["a"] is None
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json: is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_a_failed_text_leaves_the_old_one(tmp_path, monkeypatch):
    write_text_atomic(tmp_path / "a.txt", "old")
    monkeypatch.setattr(atomic.os, "fsync", disk_full)
    with pytest.raises(OSError, match=r"a\.txt: could not be written: No space left"):
        write_text_atomic(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert debris(tmp_path) == []


def test_a_truncated_tensor_file_is_one_line(tmp_path):
    file = save(tmp_path, 1) / "model.safetensors"
    for content in (file.read_bytes()[:-4], file.read_bytes()[:20], b"", b"not at all what it should be"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="truncated or not a safetensors file") as caught:
            load_tensors(file)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="gone: is missing"):
        load_tensors(tmp_path / "gone")
