"""The door for the checkpoints of others: one class in IMPORTERS, and whatever loads a model takes such a folder."""

from __future__ import annotations

import inspect
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import Command, Configure
from hugging_face_folders import write_folder
from safetensors.torch import save_file

import hybrid
from hybrid.checkpoints import IMPORTERS, StoredModel
from hybrid.checkpoints.identity import identity_at
from hybrid.checkpoints.module_state import module_tensors
from hybrid.checkpoints.saved_model import weights_as_trained
from hybrid.checkpoints.tensor_files import load_group
from hybrid.config import load_config
from hybrid.data.tokenizers import load_tokenizer
from hybrid.lm import LanguageModel
from hybrid.runs.run import Run
from hybrid.storage.json_files import read_object

KEYS = {"width": "model.dim", "depth": "model.n_layers", "heads": "model.n_heads", "inner": "model.hidden_dim",
        "context": "data.seq_len", "block": "objective.block_size"}  # fmt: skip


@dataclass(frozen=True)
class Toy:
    """config.json with sizes of other names, model.safetensors with `toy.` before each of ours, and a tokenizer."""

    def recognises(self, folder: Path) -> bool:
        return (folder / "config.json").is_file() and "toy_version" in read_object(folder / "config.json")

    def read(self, folder: Path) -> StoredModel:
        sizes = read_object(folder / "config.json")
        if sizes["toy_version"] != 1:
            raise ValueError(f"toy_version: {sizes['toy_version']} is not 1, the one that is known")
        tensors = {name.removeprefix("toy."): tensor for name, tensor in load_group(folder, "model").items()}
        return StoredModel({KEYS[key]: sizes[key] for key in KEYS}, load_tokenizer(folder / "tokenizer"), tensors)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    IMPORTERS["toy"] = Toy
    yield
    IMPORTERS.pop("toy", None)


@pytest.fixture
def foreign(lm: LanguageModel, tmp_path: Path) -> Path:
    """The model of `lm` as somebody else has written it."""
    model, folder = lm.config.model, tmp_path / "foreign"
    lm.tokenizer.save(folder / "tokenizer")
    sizes = (model.dim, model.n_layers, model.n_heads, model.hidden_dim, lm.config.data.seq_len, [4, 1])
    (folder / "config.json").write_text(json.dumps({"toy_version": 1, **dict(zip(KEYS, sizes, strict=True))}))
    save_file(
        {f"toy.{name}": tensor for name, tensor in weights_as_trained(lm.model, lm.origin).items()},
        folder / "model.safetensors",
    )
    return folder


def assert_same(one: LanguageModel, other: LanguageModel) -> None:
    tokens = torch.tensor([one.tokenizer.encode("The value of a list")])
    assert torch.equal(one.logits(tokens), other.logits(tokens))
    assert one.generate(["The ", ""], 16).tokens == other.generate(["The ", ""], 16).tokens
    assert one.block_sizes == other.block_sizes == [4, 1]


def test_a_model_of_another_format_is_loaded_saved_and_generates(
    lm: LanguageModel, foreign: Path, tmp_path: Path, command: Command
) -> None:
    imported = hybrid.load(foreign)
    assert_same(imported, lm)
    assert (imported.origin.importer, imported.config.run.name) == ("toy", "foreign")
    assert load_config(None, [f"trainer.init_from={foreign}"]).model.dim == lm.config.model.dim
    assert_same(hybrid.load(imported.save(tmp_path / "ours")), lm)  # it has generated, so the weights are read again
    texts = command("generate.py", "--checkpoint", foreign, "--prompt", "The ", "--max-new-tokens", 8)
    assert texts.code == 0 and texts.out == command(
        "generate.py", "--checkpoint", tmp_path / "ours", "--prompt", "The ", "--max-new-tokens", 8
    ).out  # fmt: skip


def test_it_is_told_in_a_line_what_a_folder_was_taken_for(
    foreign: Path, lm: LanguageModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="hybrid.lm")
    hybrid.load(lm.save(tmp_path / "ours"))
    assert caplog.messages == []
    hybrid.load(foreign)
    llama = write_folder(tmp_path / "llama", "llama", eos_token_id=[257, 258])
    hybrid.load(llama)
    v = lm.tokenizer.vocab_size
    assert caplog.messages == [
        f"{foreign}: toy, {lm.model.n_parameters():,} parameters, in_place, block_causal, block size 4, 1, context 32, "
        f"{v} ids (end {v - 1}, MASK {v})",
        f"{llama}: llama, 34,752 parameters, next_token, causal, block size 1, context 256, 300 ids (begin 256, end "
        "257 or 258, MASK 300)",
    ]


@pytest.mark.slow
def test_the_commands_import_its_module_first(
    foreign: Path,
    corpus: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    environment_of_a_child: dict[str, str],
) -> None:
    """In a process that knows nothing of it: what a user types."""
    (tmp_path / "importer_of_mine.py").write_text(
        "from hybrid.checkpoints import IMPORTERS, StoredModel\n"
        "from hybrid.checkpoints.tensor_files import load_group\nfrom hybrid.data.tokenizers import load_tokenizer\n"
        "from hybrid.storage.json_files import read_object\nfrom pathlib import Path\n"
        f"KEYS = {KEYS}\n{inspect.getsource(Toy).replace('@dataclass(frozen=True)', '')}\nIMPORTERS['theirs'] = Toy\n"
    )
    words = ("--checkpoint", str(foreign), "--imports", "importer_of_mine")
    done = subprocess.run(
        [sys.executable, "generate.py", *words, "--prompt", "The ", "--max-new-tokens", "8"],
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
        env=environment_of_a_child | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"},
    )  # fmt: skip
    assert (done.returncode, done.stdout[:4]) == (0, "The "), done.stderr
    IMPORTERS.pop("toy")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        evaluated = command("evaluate", *words, "--data", corpus, "--rows", 2, "--draws", 1, "--block-size", 1)
    finally:
        IMPORTERS.pop("theirs", None)
        sys.modules.pop("importer_of_mine", None)
    assert evaluated.code == 0, evaluated.err
    assert json.loads((foreign / "eval.json").read_text())["settings"]["imports"] == ["importer_of_mine"]


def test_a_tokenizer_that_nothing_reads_back_is_not_saved(foreign: Path, tmp_path: Path, monkeypatch) -> None:
    imported = hybrid.load(foreign)
    monkeypatch.setattr(type(imported.tokenizer), "kind", "theirs")
    with pytest.raises(ValueError, match=r"^save: kind of the tokenizer: 'theirs' is not one of bpe, byte, char"):
        imported.save(tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_training_starts_from_it_and_says_from_which(
    foreign: Path, lm: LanguageModel, configure: Configure, tmp_path: Path
) -> None:
    run = Run.of(configure(tmp_path, f"trainer.init_from={foreign}", "trainer.steps=2"))
    assert all(
        torch.equal(tensor, weights_as_trained(lm.model, lm.origin)[name])
        for name, tensor in module_tensors(run.model).items()
    )
    run.open()
    run.train()
    start = json.loads((run.folder / "environment.json").read_text())["init_from"]
    assert start == identity_at(foreign) and start["step"] is None and len(start["sha256"]) == 64


def test_it_is_evaluated_on_a_text_that_is_named(foreign: Path, corpus: Path, command: Command) -> None:
    words = ("--checkpoint", foreign, "--rows", 2, "--draws", 1)
    error = command("evaluate", *words).error
    assert "was read by the importer toy, which knows nothing of its training data" in error and "--data" in error
    before = identity_at(foreign)
    assert command("evaluate", *words, "--data", corpus).code == 0
    assert json.loads((foreign / "eval.json").read_text())["checkpoint"] == before == identity_at(foreign)


def test_what_an_importer_refuses_is_one_line_with_the_folder(foreign: Path) -> None:
    sizes = json.loads((foreign / "config.json").read_text())
    for change, message in (
        ({"toy_version": 2}, "toy_version: 2 is not 1"),
        ({"heads": 3}, "model.n_heads: 3 does not divide model.dim 16"),
        ({"width": "wide"}, "model.dim: 'wide' is a str; it must be int"),
        ({"width": 32}, r"checkpoint is of another architecture: .*embedding.weight"),
    ):
        (foreign / "config.json").write_text(json.dumps(sizes | change))
        with pytest.raises(ValueError, match=rf"^{foreign}: .*{message}") as caught:
            hybrid.load(foreign)
        assert "\n" not in str(caught.value)


def test_what_no_importer_knows_is_refused_as_ever_and_ours_is_never_asked_about(
    foreign: Path, copy_of_trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (foreign / "config.json").write_text("{}")
    message = r"^checkpoint: .*foreign: config\.json has no model_type; add the one .*\. No importer recognises it"
    with pytest.raises(ValueError, match=rf"{message} \(there are: llama, .*, toy; --imports"):
        hybrid.load(foreign)
    (foreign / "config.json").unlink()
    with pytest.raises(ValueError, match=r"^checkpoint: .*foreign: has no config\.yaml beside it; give the run folder"):
        hybrid.load(foreign)
    monkeypatch.setattr(Toy, "recognises", lambda self, folder: pytest.fail("asked"))
    for folder in (copy_of_trained, copy_of_trained / "checkpoints", copy_of_trained / "checkpoints/step-00000008"):
        assert hybrid.load(folder).origin.importer is None
