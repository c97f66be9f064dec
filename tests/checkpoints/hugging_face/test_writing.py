"""Round trips: ours -> theirs -> ours bit for bit, theirs -> ours -> theirs, and what nobody else can express."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hugging_face_folders import CONFIGS, transformers_model, write_folder
from safetensors.torch import load_file
from torch import Tensor

import hybrid
from hybrid.checkpoints.hugging_face.writing import write_folder as export
from hybrid.checkpoints.module_state import module_tensors
from hybrid.config import load_config, to_yaml
from hybrid.data.tokenizers import ByteTokenizer, CharTokenizer, SubwordTokenizer, Tokenizer
from hybrid.export import opened
from hybrid.lm import LanguageModel
from hybrid.model.build import build_model

CAUSAL = {"model.prediction": "next_token", "model.context": "causal"}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "LlamaForCausalLM": ("bpe", "[1]", {**CAUSAL, "model.qk_norm": False, "model.rope_theta": 500.0}),
    "LlamaForCausalLM, in blocks": ("byte", "[4, 1]", {**CAUSAL, "model.qk_norm": False, "model.mlp_bias": True}),
    "Qwen2ForCausalLM": ("byte", "[1]", {**CAUSAL, "model.qk_norm": False, "model.qkv_bias": True,
                                         "model.rope_scaling": "{name: llama3, original_length: 16}"}),
    "Qwen3ForCausalLM": ("char", "[1]", {**CAUSAL, "model.tied_embeddings": True, "model.head_dim": 12,
                                         "model.vocab_size": 80, "model.end_token_ids": "[3, 2]"}),
    "Qwen3ForCausalLM, YaRN": ("bpe", "[2]", {**CAUSAL, "model.begin_token_id": 5, "model.rope_scaling": "yarn",
                                        "model.rope_theta": 500.0}),
    "SDARForCausalLM": ("byte", "[4, 8]", {}),
    "SDARForCausalLM, tied": ("bpe", "seq_len", {"model.tied_embeddings": True, "decoder": "{name: margin, steps: 3}"}),
    "SDARForCausalLM, MASK inside": ("byte", "[4]", {"model.mask_token_id": 0, "model.ban_mask": False}),
}  # fmt: skip
"""Name of the class, tokenizer, block sizes, other settings."""
TEXT = "To be, or not to be: that is the question."


def tokenizer_of(kind: str) -> Tokenizer:
    if kind == "bpe":
        return SubwordTokenizer.train([TEXT * 9], 280)
    return ByteTokenizer() if kind == "byte" else CharTokenizer(TEXT)


def model_of(kind: str, seed: int = 0, **changes: Any) -> LanguageModel:
    tokenizer, sizes, settings = KINDS[kind]
    small = {"model.dim": 32, "model.n_layers": 2, "model.n_heads": 4, "model.n_kv_heads": 2, "data.seq_len": 64}
    settings = {**small, "objective.block_size": sizes, **settings, **changes}
    config = load_config(None, [f"{key}={value}" for key, value in settings.items()], checked=False)
    found = tokenizer_of(tokenizer)
    model = build_model(config.model, found.vocab_size, found.end_of_text, torch.device("cpu"), seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():  # also of those that begin as ones or zeros
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return LanguageModel(config, found, model.eval())


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.thin(4)
def test_what_was_exported_is_the_same_model_to_us(kind: str, tmp_path: Path) -> None:
    lm = model_of(kind)
    written = export(opened(lm.save(tmp_path / "ours"))[2], tmp_path / "theirs")
    again = hybrid.load(tmp_path / "theirs")
    assert written.family.architecture == kind.partition(",")[0]
    assert to_yaml(again.config) == to_yaml(lm.config)
    assert (again.tokenizer.fingerprint, again.block_sizes) == (lm.tokenizer.fingerprint, lm.block_sizes)
    ours, theirs = module_tensors(lm.model), module_tensors(again.model)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (again.mask_token_id, again.model.begin_token_id) == (lm.mask_token_id, lm.model.begin_token_id)
    assert again.generate(["To ", ""], 12).tokens == lm.generate(["To ", ""], 12).tokens


@pytest.mark.thin(4)
@pytest.mark.filterwarnings("ignore:block_size")
def test_without_our_record_the_network_is_the_same(kind: str, tmp_path: Path) -> None:
    """What others see, by our own importer; test_what_was_exported_has_our_logits_in_transformers asks them."""
    lm = model_of(kind)
    export(opened(lm.save(tmp_path / "ours"))[2], tmp_path / "theirs")
    (tmp_path / "theirs/hybrid.json").unlink()
    again, ids = hybrid.load(tmp_path / "theirs"), lm.tokenizer.encode(TEXT)
    assert again.tokenizer.encode(TEXT) == ids and again.tokenizer.decode(ids) == TEXT
    assert again.model.end_token_ids == lm.model.end_token_ids
    assert again.tokenizer.end_of_text == lm.tokenizer.end_of_text
    tokens, size = torch.tensor([ids[:20]]), again.block_sizes[0]
    if lm.config.model.begin:
        assert (size, again.model.begin_token_id) == (1, lm.model.begin_token_id)
    else:
        assert (size, again.mask_token_id) == (lm.block_sizes[0], lm.mask_token_id)
    ours, theirs = lm.logits(tokens, size), again.logits(tokens, size)
    # Products with another number of columns may be rounded otherwise.
    torch.testing.assert_close(ours, theirs[..., : ours.shape[-1]], rtol=0, atol=1e-5)
    assert again.config.data.seq_len == 64


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:block_size")
def test_what_was_exported_has_our_logits_in_transformers(kind: str, tmp_path: Path) -> None:
    lm = model_of(kind)
    export(opened(lm.save(tmp_path / "ours"))[2], tmp_path / "theirs")
    model = transformers_model(tmp_path / "theirs")
    tokens = torch.tensor([lm.tokenizer.encode(TEXT)[:24]])
    size = 1 if lm.config.model.begin else 4
    ours = lm.logits(tokens, size)
    with torch.no_grad():
        if lm.config.model.begin:
            given = torch.nn.functional.pad(tokens[:, :-1], (1, 0), value=lm.model.begin_token_id)
            theirs = model(given).logits
        else:
            parts = [block(model, tokens, start, size, lm.mask_token_id) for start in range(0, tokens.shape[1], size)]
            theirs = torch.cat(parts, dim=1)
    torch.testing.assert_close(ours, theirs[..., : lm.model.vocab_size], rtol=0, atol=1e-4)


def block(model: Any, tokens: Tensor, start: int, size: int, mask: int) -> Tensor:
    """Logits of a block that is MASK, seen together with all before it."""
    end = min(start + size, tokens.shape[1])
    rows = torch.cat([tokens[:, :start], torch.full((len(tokens), end - start), mask)], dim=1)
    number = torch.arange(end) // size
    sees = (number[None] <= number[:, None])[None, None]
    return model(rows, attention_mask=sees, use_cache=False).logits[:, start:]


@pytest.mark.slow
def test_their_tokenizer_is_ours(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    lm = model_of(kind)
    export(opened(lm.save(tmp_path / "ours"))[2], tmp_path / "theirs")
    theirs, text = AutoTokenizer.from_pretrained(tmp_path / "theirs"), TEXT[3:]
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert ids == lm.tokenizer.encode(text) and theirs.decode(ids) == text
    assert (theirs.eos_token_id, theirs.bos_token_id) == (
        lm.tokenizer.end_of_text, lm.model.begin_token_id if lm.config.model.begin else None
    )  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_what_was_imported_is_written_with_the_same_tensors(name: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "theirs", name)
    export(opened(folder)[2], tmp_path / "again", shard_bytes=10**5)
    assert (tmp_path / "again/model.safetensors.index.json").exists(), "more than one shard"
    before = load_file(folder / "model.safetensors")
    after = {k: v for file in (tmp_path / "again").glob("*.safetensors") for k, v in load_file(file).items()}
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert json.loads((tmp_path / "again/config.json").read_text())["model_type"] == CONFIGS[name]["model_type"]
    one, other = hybrid.load(folder), hybrid.load(tmp_path / "again")
    assert (one.config.model, one.config.data.seq_len) == (other.config.model, other.config.data.seq_len)
    assert torch.equal(one.model.embedding.weight, other.model.embedding.weight), "MASK's row, too"


def test_a_chat_template_goes_along(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "theirs", "llama")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ bos_token }}{{ m.content }}{% endfor %}")
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    export(opened(folder)[2], tmp_path / "again")
    assert hybrid.load(tmp_path / "again").tokenizer.chat_template == hybrid.load(folder).tokenizer.chat_template


def test_mask_has_a_row_that_others_are_told_to_suppress(tmp_path: Path) -> None:
    lm = model_of("LlamaForCausalLM, in blocks")
    export(opened(lm.save(tmp_path / "ours"))[2], tmp_path / "theirs")
    tensors = load_file(tmp_path / "theirs/model.safetensors")
    assert tensors["model.embed_tokens.weight"].shape == tensors["lm_head.weight"].shape == (258, 32)
    assert not tensors["lm_head.weight"][257].any() and tensors["model.embed_tokens.weight"][257].any()
    assert json.loads((tmp_path / "theirs/generation_config.json").read_text())["suppress_tokens"] == [257]
    lm = model_of("SDARForCausalLM, MASK inside", **{"model.ban_mask": True})
    export(opened(lm.save(tmp_path / "inside"))[2], tmp_path / "x")
    assert json.loads((tmp_path / "x/generation_config.json").read_text())["suppress_tokens"] == [0]
    export(opened(model_of("SDARForCausalLM, MASK inside").save(tmp_path / "counted"))[2], tmp_path / "y")
    assert "suppress_tokens" not in json.loads((tmp_path / "y/generation_config.json").read_text())


@pytest.mark.parametrize("changes, expected", [
    ({"model.mlp": "gelu"}, "the nearest, SDARForCausalLM, lacks model.mlp=gelu (it has swiglu)"),
    ({"model.norm": "layer"}, "lacks model.norm=layer (it has rms)"),
    ({"model.qk_norm": False}, "lacks model.qk_norm=false (it has true)"),
    ({"model.context": "causal"}, "lacks model.context=causal (it has block_causal)"),
    ({"model.prediction": "next_token"},
     "the nearest, Qwen3ForCausalLM, lacks model.context=block_causal at block size 4, 8 (it has causal)"),
    ({"model.prediction": "next_token", "model.context": "causal", "model.qkv_bias": True}, "lacks model.qk"),
])  # fmt: skip
def test_what_no_public_class_expresses(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    ours = opened(model_of("SDARForCausalLM", **changes).save(tmp_path / "ours"))[2]
    with pytest.raises(ValueError, match=r"^no public class expresses the model") as caught:
        export(ours, tmp_path / "theirs")
    assert expected in str(caught.value) and not (tmp_path / "theirs").exists()


def test_at_block_size_one_a_block_causal_model_is_causal(tmp_path: Path) -> None:
    lm = model_of("SDARForCausalLM", **{"model.prediction": "next_token", "objective.block_size": 1})
    assert export(opened(lm.save(tmp_path / "ours"))[2], tmp_path / "x").family.architecture == "Qwen3ForCausalLM"
    assert hybrid.load(tmp_path / "x").config.model.context == "block_causal"


def test_texts_in_the_settings_come_back(tmp_path: Path) -> None:
    texts: dict[str, Any] = {
        "run.name": '"na\u00efve \U0001f600"',
        "eval.sample_prompts": r'["\U0001F600", "a\\u0041\tb\x85\u2028\"", ""]',
    }
    lm = model_of("SDARForCausalLM", **texts)
    assert lm.config.eval.sample_prompts == ["\U0001f600", 'a\\u0041\tb\x85\u2028"', ""]
    export(opened(lm.save(tmp_path / "ours"))[2], tmp_path / "\U0001f600")
    assert to_yaml(hybrid.load(tmp_path / "\U0001f600").config) == to_yaml(lm.config)


def test_a_record_names_no_code_that_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(opened(model_of("SDARForCausalLM").save(tmp_path / "ours"))[2], tmp_path / "x")
    record = json.loads((tmp_path / "x/hybrid.json").read_text())
    record["config"]["run"]["imports"] = ["of_a_stranger"]
    (tmp_path / "x/hybrid.json").write_text(json.dumps(record))
    (tmp_path / "of_a_stranger.py").write_text("raise SystemExit('it was run')")
    monkeypatch.syspath_prepend(tmp_path)
    assert hybrid.load(tmp_path / "x").block_sizes == [4, 8]
    for changes in (
        {" run": {"imports": ["of_a_stranger"]}},
        {"run": {"imports ": ["of_a_stranger"]}},
        {"run": {"imports=[of_a_stranger] #": 1}},
        {"run.imports=[of_a_stranger] #": {"a": 1}},
        {"": {"run.imports": ["of_a_stranger"]}},
    ):
        (tmp_path / "x/hybrid.json").write_text(json.dumps(record | {"config": record["config"] | changes}))
        with pytest.raises(ValueError, match="is not the name of a setting") as caught:
            hybrid.load(tmp_path / "x")
        assert "\n" not in str(caught.value)


def test_a_record_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    export(opened(model_of("SDARForCausalLM").save(tmp_path / "ours"))[2], tmp_path / "x")
    record = tmp_path / "x/hybrid.json"
    known = json.loads(record.read_text())["config"]
    for content, expected in (
        ({"format": 2}, "format 2 is not 1"),
        ({"format": 1, "config": [1]}, r"config \[1\] holds no groups"),
        ({"format": 1, "config": {"model": {"dim": "x"}}}, "model.dim: 'x' is a str"),
        ({"format": 1, "config": {"model": {"dim": 64}}}, "the weights are not those of config.json"),
        ({"format": 1, "config": known | {"model": known["model"] | {"dimm": 64}}}, "dimm"),
    ):
        record.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=expected) as caught:
            hybrid.load(tmp_path / "x")
        assert "\n" not in str(caught.value)
