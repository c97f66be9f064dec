"""python -m hybrid.export: a run becomes a folder of others, with a card; what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from chat_tokenizers import talk
from conftest import Command
from hugging_face_folders import write_folder
from safetensors.torch import load_file

import hybrid
from hybrid.checkpoints.hugging_face.writing import write_folder as write
from hybrid.checkpoints.importers import Origin
from hybrid.config import load_config
from hybrid.data.chat import PLAIN
from hybrid.data.tokenizers import ByteTokenizer
from hybrid.export import opened
from hybrid.lm import LanguageModel
from hybrid.model.build import build_model
from hybrid.text.chat import ChatPrompts


def test_a_run_is_written_once_with_what_was_measured(copy_of_trained: Path, tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "exported"
    done = command("export", copy_of_trained, folder, "--format", "hf", "--dtype", "bfloat16")
    assert done.code == 0 and re.search(r"SDARForCausalLM, [1-9]\d* KB in bfloat16", done.err)
    card = (folder / "README.md").read_text()
    assert "| prediction | in_place" in card and "| block sizes trained | 4, 1 |" in card and "Nothing yet" in card
    assert all(tensor.dtype == torch.bfloat16 for tensor in load_file(folder / "model.safetensors").values())
    assert hybrid.load(folder).block_sizes == [4, 1]
    assert command("export", folder, tmp_path / "once more").code == 0
    assert "| objective | masked" in (tmp_path / "once more/README.md").read_text()
    assert "exists and is not an empty folder" in command("export", copy_of_trained, folder).error
    assert command("evaluate", "--checkpoint", copy_of_trained, "--rows", 2, "--draws", 1).code == 0
    assert command("export", copy_of_trained, tmp_path / "again").code == 0
    again = (tmp_path / "again/README.md").read_text()
    assert "by `hybrid.evaluate`" in again and "| 4 | bound |" in again and "| 1 | exact |" in again
    assert "| class | SDARForCausalLM, float32 |" in again, "as it is stored"


def test_an_imported_model_says_from_what_it_is(tmp_path: Path, command: Command) -> None:
    folder = write_folder(tmp_path / "theirs", "qwen3")
    assert command("export", folder, tmp_path / "x").code == 0
    card = (tmp_path / "x/README.md").read_text()
    assert "| taken from | a checkpoint of qwen3 |" in card and "Every text begins with token 256" in card


@pytest.mark.parametrize("words, expected", [
    (("nowhere", "x"), "checkpoint: nowhere does not exist"),
    (("RUN", "x", "--dtype", "int8"), "--dtype"),
    (("RUN", "x", "--format", "gguf"), "--format"),
    (("RUN",), "FOLDER"),
])  # fmt: skip
def test_bad_words_are_one_line(words: tuple[str, ...], expected: str, trained: Path, tmp_path: Path, command) -> None:
    named = [{"RUN": trained, "x": tmp_path / "x"}.get(word, word) for word in words]
    assert expected in command("export", *named).error
    assert not (tmp_path / "x").exists()


def test_turns_begin_where_they_did_in_training(tmp_path: Path) -> None:
    """Blocks of a conversation are filled up; whoever asks the exported model fills them up, too."""
    tokenizer, asked = ByteTokenizer(), talk("7?", "7", "sure?")
    tokenizer.chat_template = PLAIN
    config = load_config(None, ["model.dim=16", "model.n_layers=1", "model.n_heads=2", "objective.block_size=4"])
    model = build_model(config.model, tokenizer.vocab_size, tokenizer.end_of_text, torch.device("cpu"), seed=0)
    hashes = {"corpus_sha256": "a", "tokenizer_fingerprint": tokenizer.fingerprint}
    data = {**hashes, "turns": {"how": "pad", "unit": 4}}
    lm = LanguageModel(config, tokenizer, model, origin=Origin(data=data))
    write(opened(lm.save(tmp_path / "ours"))[2], tmp_path / "theirs")
    again = hybrid.load(tmp_path / "theirs")
    ids = ChatPrompts.of(lm)(asked)
    assert again.origin.data == data and ChatPrompts.of(again)(asked) == ids and ids.count(256) > 1
    record = tmp_path / "theirs/hybrid.json"
    for unit in ("4", 0, -4, 10**15, None, [4]):
        changed = json.loads(record.read_text()) | {"data": {**hashes, "turns": {"unit": unit}}}
        record.write_text(json.dumps(changed))
        assert hybrid.load(tmp_path / "theirs").origin.data is None
