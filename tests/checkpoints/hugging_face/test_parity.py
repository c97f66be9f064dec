"""Models of transformers and ours, of the same folder, give the same logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hugging_face_folders import CONFIGS, VOCAB, transformers_model, write_folder
from torch import Tensor

import hybrid

BEGIN = 256

pytestmark = pytest.mark.filterwarnings("ignore:block_size")


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp(request.param) / request.param, request.param)


def texts(length: int) -> Tensor:
    return torch.randint(0, 256, (2, length), generator=torch.Generator().manual_seed(length))


@torch.no_grad()
def theirs(model: Any, name: str, tokens: Tensor, size: int) -> Tensor:
    """Block by block: the texts before it, its MASKs, and a mask of who sees whom (b, 1, q, k)."""
    embed = model.get_input_embeddings().weight
    mask = embed[290] if name == "sdar" else embed.float().mean(0).to(embed.dtype)
    shift = int(name != "sdar")  # a begin token, and a token is read one place earlier
    given = F.pad(tokens, (shift, 0), value=BEGIN)
    logits = []
    for start in range(0, tokens.shape[1], size):
        end = min(start + size, tokens.shape[1])
        masks = mask.expand(len(tokens), end - start, -1)
        rows = torch.cat([F.embedding(given[:, : start + shift], embed), masks], dim=1)
        place = torch.arange(rows.shape[1])
        block = (place - shift).div(size, rounding_mode="floor")
        sees = block[None] <= block[:, None]
        if name != "sdar":  # a clean token sees none behind it
            sees &= (place[None] <= place[:, None]) | (place[:, None] >= start + shift)
        out = model(inputs_embeds=rows, attention_mask=sees.expand(len(tokens), 1, -1, -1), use_cache=False).logits
        logits.append(out[:, start:end])
    return torch.cat(logits, dim=1)


@pytest.mark.slow
@pytest.mark.parametrize("length", [8, 200])
def test_logits_are_theirs_at_every_block_size(folder: Path, length: int) -> None:
    model, lm, tokens = transformers_model(folder), hybrid.load(folder), texts(length)
    if folder.name != "sdar":  # as anybody would call it
        with torch.no_grad():
            plain = model(F.pad(tokens[:, :-1], (1, 0), value=BEGIN)).logits
        torch.testing.assert_close(lm.logits(tokens, 1), plain, rtol=0, atol=2e-4)
    for size in (1, 2, 4, 8) if length == 8 else (40, 200):
        ours = lm.logits(tokens, size)
        assert ours.shape[-1] == VOCAB
        torch.testing.assert_close(ours, theirs(model, folder.name, tokens, size), rtol=0, atol=2e-4)


@pytest.mark.slow
def test_in_bfloat16_both_are_as_far_from_float32(folder: Path) -> None:
    models = transformers_model(folder), transformers_model(folder, torch.bfloat16)
    lm = hybrid.load(folder, precision="bf16")
    for tokens, size in ((texts(8), 4), (texts(200), 50)):
        exact, rounded = (theirs(model, folder.name, tokens, size) for model in models)
        ours = lm.logits(tokens, size)
        assert ours.dtype == torch.bfloat16
        assert distance(ours, exact) < 1.5 * distance(rounded, exact) < 0.1 * float(exact.std())


@pytest.mark.slow
def test_what_transformers_writes_itself_in_shards_is_read(folder: Path, tmp_path: Path) -> None:
    """config.json of version 5, several files, its own order of tensors."""
    if folder.name == "sdar":
        pytest.skip("transformers has no SDAR")
    transformers_model(folder).save_pretrained(tmp_path, max_shard_size="40KB")
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert "rope_parameters" in (tmp_path / "config.json").read_text()
    one, other = hybrid.load(folder), hybrid.load(tmp_path)
    assert torch.equal(one.logits(texts(8), 1), other.logits(texts(8), 1))
    models = [replace(lm.config.model, head_dim=lm.config.model.head_width) for lm in (one, other)]
    assert models[0] == models[1] and one.config.data.seq_len == other.config.data.seq_len


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).square().mean().sqrt())
