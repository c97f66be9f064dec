"""What a Hugging Face folder is read as: settings, tokens, weights one at a time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, Configure
from hugging_face_folders import CONFIGS, LLAMA3, SIZES, VOCAB, write_folder
from safetensors.torch import load_file, save_file

import hybrid
from hybrid.checkpoints import IMPORTERS
from hybrid.checkpoints.hugging_face import FAMILIES
from hybrid.checkpoints.hugging_face.llama import Llama
from hybrid.checkpoints.hugging_face.names import LLAMA_NAMES, Names
from hybrid.checkpoints.hugging_face.rope import rope_settings
from hybrid.checkpoints.hugging_face.their_config import TheirConfig
from hybrid.checkpoints.importers import open_model
from hybrid.checkpoints.module_state import module_tensors

TEXT = torch.tensor([[72, 101, 108, 108, 111, 32, 119, 33]])
RECORDED = {
    "llama": [-3.25478, 0.69939, 1.58829, -1.39464],
    "llama3": [-3.34831, 0.64211, 1.52172, -1.46135],
    "qwen2": [-1.19957, 1.47962, 0.7869, -1.88506],
    "qwen3": [-0.58043, 2.22557, -3.26604, -1.47702],
    "sdar": [-0.54864, -0.48305, -1.10317, 0.36294],
}
"""Logits of ids 0 to 3 at the last place of TEXT, as transformers 5.24 gave them."""


@pytest.fixture(params=CONFIGS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_folder(tmp_path / request.param, request.param)


def change(folder: Path, name: str = "config.json", **changes: Any) -> Path:
    """Change keys of a JSON file; None removes one."""
    content = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
    kept = {key: value for key, value in (content | changes).items() if value is not None}
    (folder / name).write_text(json.dumps(kept))
    return folder


def test_logits_are_those_that_transformers_gave(folder: Path) -> None:
    """test_parity.py compares all of them; this one costs no import of transformers."""
    logits = hybrid.load(folder).logits(TEXT)[0, -1, :4]
    torch.testing.assert_close(logits, torch.tensor(RECORDED[folder.name]), rtol=0, atol=1e-4)


@pytest.mark.thin(2)
def test_it_is_generated_from_saved_and_loaded_again(folder: Path, tmp_path: Path, command: Command) -> None:
    lm = hybrid.load(folder)
    texts = lm.generate(["The ", ""], 12).tokens
    again = hybrid.load(lm.save(tmp_path / "ours"))
    assert again.generate(["The ", ""], 12).tokens == texts
    assert torch.equal(again.logits(TEXT), lm.logits(TEXT))
    assert (again.config.model, again.block_sizes) == (lm.config.model, lm.block_sizes)
    assert again.tokenizer.fingerprint == lm.tokenizer.fingerprint
    done = command("generate.py", "--checkpoint", folder, "--prompt", "The ", "--max-new-tokens", 12)
    assert done.code == 0 and done.out.startswith("The ")


def test_an_autoregressive_model_has_a_row_for_mask_behind_its_own(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", "llama")
    lm, theirs = hybrid.load(folder), load_file(folder / "model.safetensors")
    assert (lm.mask_token_id, lm.model.vocab_size, lm.block_sizes) == (VOCAB, VOCAB, [1])
    assert (lm.config.model.context, lm.config.model.prediction) == ("causal", "next_token")
    rows = module_tensors(lm.model)["embedding.weight"]
    assert torch.equal(rows[:VOCAB], theirs["model.embed_tokens.weight"])
    torch.testing.assert_close(rows[VOCAB], theirs["model.embed_tokens.weight"].mean(0))
    assert torch.equal(module_tensors(lm.model)["head_weight"], theirs["lm_head.weight"])


def test_a_row_that_is_read_in_pieces_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "m", "llama")
    whole = open_model(folder)[0].tensors["embedding.weight"]
    monkeypatch.setattr("hybrid.checkpoints.hugging_face.weight_files.CHUNK", 7 * 32)
    pieces = open_model(folder)[0].tensors["embedding.weight"]
    assert torch.equal(whole[:VOCAB], pieces[:VOCAB])
    torch.testing.assert_close(whole[VOCAB], pieces[VOCAB])


def test_sdar_has_mask_inside_and_reads_tokens_in_place(tmp_path: Path) -> None:
    lm = hybrid.load(write_folder(tmp_path / "m", "sdar", block_size=8))
    assert (lm.mask_token_id, lm.model.vocab_size, lm.block_sizes) == (290, VOCAB, [8])
    assert (lm.config.model.context, lm.config.model.prediction) == ("block_causal", "in_place")
    assert lm.logits(TEXT)[..., 290].isfinite().all(), "their softmax counts MASK"


def test_end_and_begin_are_what_the_configuration_says(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", "qwen2", eos_token_id=[258, 257], bos_token_id=256)
    change(folder, "generation_config.json", eos_token_id=[257, 256], bos_token_id=5)
    lm = hybrid.load(folder)
    assert lm.tokenizer.end_of_text == 258, "not </s>, which is called as an end of text is"
    assert lm.model.end_token_ids == {256, 257, 258} and lm.model.begin_token_id == 256
    assert lm.tokenizer.encode("a<turn>") == [ord(c) - 33 if c != "a" else 64 for c in "a<turn>"]
    bare = hybrid.load(change(folder, bos_token_id=None, eos_token_id=None))
    assert (bare.tokenizer.end_of_text, bare.model.begin_token_id) == (257, 5)
    (folder / "generation_config.json").unlink()
    named = hybrid.load(folder)
    assert named.tokenizer.end_of_text == named.model.begin_token_id == 257, "as tokens of that kind are called"


def test_rows_without_a_token_decode_to_nothing(tmp_path: Path) -> None:
    lm = hybrid.load(write_folder(tmp_path / "m", "llama"))
    assert lm.tokenizer.vocab_size == 259 < VOCAB
    assert lm.tokenizer.decode([39, 299, 72, 257]) == lm.tokenizer.decode([39, 72])


@pytest.mark.parametrize("four, five", [
    ({}, {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, {"rope_parameters": {"rope_theta": 5e5, **LLAMA3}}),
    ({"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4}},
     {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "mscale": 0,
                          "original_max_position_embeddings": 256}}),
])  # fmt: skip
def test_both_versions_of_a_config_say_the_same(four: dict[str, Any], five: dict[str, Any]) -> None:
    assert rope_settings(TheirConfig(SIZES | four)) == rope_settings(TheirConfig(SIZES | five))


def test_what_is_left_out_has_the_defaults_of_transformers(tmp_path: Path) -> None:
    """Those of 5.24."""
    sizes = {key: SIZES[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")}
    sizes |= {"num_attention_heads": 64, "block_size": 4, "mask_token_id": 7}
    for name, family in FAMILIES.items():
        is_qwen = name != "llama"
        got = family().settings(TheirConfig(sizes), tmp_path)
        assert (got["model.norm_eps"], got["model.rope_theta"], got["model.rope_scaling"]) == (1e-6, 10000.0, None)
        assert (got["model.tied_embeddings"], got["model.n_kv_heads"]) == (False, 32 if is_qwen else 64)
        assert got["model.head_dim"] == (128 if name in ("qwen3", "sdar") else None)
        assert got["data.seq_len"] == (32768 if is_qwen else 2048)
        null = TheirConfig({**sizes, "num_key_value_heads": None})
        assert family().settings(null, tmp_path)["model.n_kv_heads"] == 64
        if is_qwen:  # 32 would not divide them
            with pytest.raises(ValueError, match=r"config.json: num_key_value_heads is missing; add it"):
                family().settings(TheirConfig({**sizes, "num_attention_heads": 14}), tmp_path)


def test_shards_are_read_as_one_file_is(folder: Path) -> None:
    expected = hybrid.load(folder).logits(TEXT)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {f"model-0000{i + 1}-of-00003.safetensors": sorted(tensors)[i::3] for i in range(3)}
    for file, names in shards.items():
        save_file({name: tensors[name] for name in names}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in shards.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(hybrid.load(folder).logits(TEXT), expected)


def test_a_snapshot_of_the_hub_cache_is_read_through_its_links(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "models--x/snapshots/abc", "llama")
    (tmp_path / "models--x/blobs").mkdir()
    for file in list(folder.iterdir()):
        file.rename(tmp_path / "models--x/blobs" / file.name)
        file.symlink_to(Path("../../blobs") / file.name)
    assert hybrid.load(folder).block_sizes == [1]


def test_a_head_beside_tied_weights_and_old_buffers_do_no_harm(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", "qwen2")
    expected = hybrid.load(folder).logits(TEXT)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, folder / "model.safetensors")
    assert torch.equal(hybrid.load(folder).logits(TEXT), expected)
    save_file(tensors | {"lm_head.weight": tensors["lm_head.weight"] + 1}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"tie_word_embeddings is true, and lm_head\.weight is another matrix"):
        hybrid.load(folder)


@dataclass(frozen=True)
class Renamed(Llama):
    """The layers of Llama under the names that LLaDA gives them."""

    model_type = "renamed"
    names = Names(
        outer={
            "embedding.weight": "model.transformer.wte.weight",
            "final_norm.weight": "model.transformer.ln_f.weight",
            "head_weight": "model.transformer.ff_out.weight",
        },
        layers="model.transformer.blocks",
        parts={
            "attention_norm": "attn_norm", "wq": "q_proj", "wk": "k_proj", "wv": "v_proj", "wo": "attn_out",
            "mlp_norm": "ff_norm", "w_gate": "ff_proj", "w_up": "up_proj", "w_down": "ff_out",
        },
    )  # fmt: skip


def test_a_family_may_have_names_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "m", "llama")
    lm = hybrid.load(folder)
    theirs, tensors = load_file(folder / "model.safetensors"), module_tensors(lm.model)
    renamed = {Renamed.names.theirs(name): theirs[LLAMA_NAMES.theirs(name)] for name in tensors}
    save_file(renamed, folder / "model.safetensors")
    monkeypatch.setitem(IMPORTERS, "renamed", Renamed)
    assert torch.equal(hybrid.load(change(folder, model_type="renamed")).logits(TEXT), lm.logits(TEXT))


def test_training_with_the_tokenizer_of_the_folder(tmp_path: Path, configure: Configure) -> None:
    """`data.tokenizer=FOLDER`: its end of text is the configured one, which `</s>` is not."""
    from hybrid.runs.run import Run

    folder = write_folder(tmp_path / "m", "llama", eos_token_id=258)
    run = Run.of(configure(tmp_path, f"data.tokenizer={folder}", "trainer.steps=1"))
    assert run.data.tokenizer.fingerprint == hybrid.load(folder).tokenizer.fingerprint
    assert run.data.tokenizer.end_of_text == 258
    other = Run.of(configure(tmp_path, f"data.tokenizer={folder / 'tokenizer.json'}", "trainer.steps=1"))
    assert other.data.tokenizer.end_of_text == 257, "of a file alone, as ever"
