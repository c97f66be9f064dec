"""What is taken for a model and is none: a line that says how a model is had from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hugging_face_folders import write_folder

import hybrid
from hybrid.checkpoints.lookalikes import lookalike


@pytest.mark.parametrize(
    "names, message",
    [
        (["a.gguf", "README.md"], r"holds a GGUF file; python -m hybrid\.convert .*/m/a\.gguf FOLDER writes"),
        (["adapter_config.json", "adapter_model.safetensors"], r"holds an adapter \(LoRA\) without its model; merge"),
        (["tokenizer.json"], r"has no config\.json, which says what model it is; copy all files of the model"),
        (["model.safetensors", "tokenizer.json"], r"has no config\.json"),
        (["model.safetensors.index.json"], r"has no config\.json"),
    ],
)
def test_a_folder_that_is_no_model_says_what_it_is(names: list[str], message: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / "m").mkdir(exist_ok=True)
        (tmp_path / "m" / name).touch()
    with pytest.raises(ValueError, match=rf"^checkpoint: {tmp_path}/m {message}"):
        hybrid.load(tmp_path / "m")


def test_a_file_of_weights_is_to_be_converted(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    with pytest.raises(ValueError, match=r"a\.gguf is a GGUF file; python -m hybrid\.convert .*a\.gguf FOLDER writes"):
        hybrid.load(tmp_path / "a.gguf")


def test_what_is_a_model_is_taken_for_one(trained: Path, tmp_path: Path) -> None:
    theirs = write_folder(tmp_path / "theirs", "llama")
    (theirs / "quantised.gguf").touch()  # lies beside the weights of some
    saved = hybrid.load(trained).save(tmp_path / "saved")
    for folder in (theirs, trained, trained / "checkpoints", saved):
        assert lookalike(folder) is None
    assert hybrid.load(theirs).origin.importer == "llama"
    assert lookalike(Path("x" * 5000)) is None and lookalike(tmp_path) is None
