"""Checkpoints are whole or absent, whatever fails, and exact."""

from __future__ import annotations

import errno
import math
import os
import resource
from pathlib import Path

import pytest
import torch
from checkpoint_folders import assert_whole, debris, save
from safetensors import SafetensorError
from safetensors.torch import load_file

from hybrid.checkpoints import saving, tensor_files
from hybrid.checkpoints.finding import find_checkpoint, list_checkpoints, read_best, read_state, step_of
from hybrid.checkpoints.saving import mark_best, prune, save_checkpoint
from hybrid.storage import atomic, folders
from hybrid.storage.atomic import write_text_atomic


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
    loaded = load_file(found / "model.safetensors")
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


@pytest.mark.thin(1)
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
