"""Write a model of ours in the format of Hugging Face, as the family that can express it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybrid.checkpoints.hugging_face import FAMILIES, Family
from hybrid.checkpoints.hugging_face.names import Names, shapes_of
from hybrid.checkpoints.hugging_face.record import write_record
from hybrid.checkpoints.hugging_face.rope import their_rope
from hybrid.checkpoints.hugging_face.their_tokenizer import write_tokenizer
from hybrid.checkpoints.hugging_face.weight_files import pieces_of
from hybrid.checkpoints.hugging_face.weights import EMBEDDING, HEAD, mean_row
from hybrid.checkpoints.module_state import first_few
from hybrid.checkpoints.streamed_tensors import SHARD_BYTES, StreamedTensor, write_tensors
from hybrid.data.tokenizers import Tokenizer
from hybrid.data.tokenizers.published import CONFIG, GENERATION_CONFIG
from hybrid.model.config import ModelConfig
from hybrid.storage.atomic import write_json_atomic, write_text_atomic
from hybrid.storage.folders import new_folder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class OurModel:
    """What is written: a model as it lies in a folder of ours, or in one that was imported.

    Attributes:
        settings: the whole configuration, group by group.
        tensors: the weights by our names, as `StoredModel` has them.
        data: what is recorded of the data of the training; None: nothing.
    """

    settings: Mapping[str, Any]
    model: ModelConfig
    seq_len: int
    block_sizes: Sequence[int]
    tokenizer: Tokenizer
    tensors: Mapping[str, Tensor]
    data: Mapping[str, Any] | None = None

    @property
    def n_ids(self) -> int:
        return self.model.n_ids(self.tokenizer.vocab_size)

    @property
    def begin(self) -> int | None:
        """The token before a text; None: a text begins with itself."""
        given = self.model.begin_token_id
        return None if not self.model.begin else self.tokenizer.end_of_text if given is None else given


@dataclass(frozen=True)
class Written:
    """What a folder was written as. `has_mask_row`: behind the ids of the tokenizer, embedding and head have MASK's."""

    family: Family
    dtype: str
    config: Mapping[str, Any]
    has_mask_row: bool
    n_bytes: int


def family_for(model: ModelConfig, block_sizes: Sequence[int]) -> Family:
    """Return the first family that can express a model.

    Raises:
        ValueError: none can; the message says what the nearest one lacks.
    """
    families = [family() for family in FAMILIES.values() if family.fixed["prediction"] == model.prediction]
    lacking = {family.model_type: family.lacks(model, block_sizes) for family in families}
    found = next((family for family in families if not lacking[family.model_type]), None)
    if found is None:
        near = min(lacking, key=lambda name: len(lacking[name]))
        raise ValueError(
            f"no public class expresses the model; the nearest, {FAMILIES[near].architecture}, lacks "
            f"{', '.join(lacking[near])}. It loads with hybrid alone (lm.save)"
        )
    return found


def write_folder(
    ours: OurModel, folder: Path, dtype: str | None = None, card: Callable[[Written], str] = lambda written: "",
    shard_bytes: int = SHARD_BYTES,
) -> Written:  # fmt: skip
    """Write config.json, safetensors, tokenizer, generation_config.json, README.md and hybrid.json.

    The folder appears when it is complete.

    Args:
        dtype: of `DTYPES`; None: that of the embedding.
        card: makes README.md.

    Raises:
        ValueError: the folder exists and is not empty, or no family expresses the model; one line.
        OSError: it could not be written.
    """
    family = family_for(ours.model, ours.block_sizes)
    rope = their_rope(ours.model)
    _check_names(ours)
    stored = {kind: name for name, kind in DTYPES.items()}.get(ours.tensors[EMBEDDING].dtype, "float32")
    dtype = dtype or stored
    rows = _rows(ours, DTYPES[dtype])
    config = {
        "architectures": [family.architecture], "model_type": family.model_type, **_sizes(ours, rows), **rope,
        **_special_ids(ours), **family.to_theirs(ours.model, rows, ours.block_sizes[0]), "torch_dtype": dtype,
    }  # fmt: skip
    has_mask_row = rows > ours.n_ids
    mask = ours.n_ids if ours.model.mask_token_id is None else ours.model.mask_token_id
    suppressed = {"suppress_tokens": [mask]} if mask < rows and ours.model.ban_mask else {}
    with new_folder(folder, manifest=False) as temporary:
        n_bytes = write_tensors(temporary, _streamed(ours, family.names, rows), DTYPES[dtype], shard_bytes)
        write_tokenizer(ours.tokenizer, temporary, ours.begin, ours.seq_len)
        write_json_atomic(temporary / CONFIG, config)
        write_json_atomic(temporary / GENERATION_CONFIG, {**_special_ids(ours), **suppressed})
        write_record(temporary, ours.settings, ours.data)
        written = Written(family, dtype, config, has_mask_row, n_bytes)
        write_text_atomic(temporary / "README.md", card(written))
    return written


def _sizes(ours: OurModel, rows: int) -> dict[str, Any]:
    c = ours.model
    return {
        "vocab_size": rows, "hidden_size": c.dim, "num_hidden_layers": c.n_layers, "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.kv_heads, "head_dim": c.head_width, "intermediate_size": c.mlp_dim,
        "hidden_act": "silu", "rms_norm_eps": c.norm_eps, "max_position_embeddings": ours.seq_len,
        "tie_word_embeddings": c.tied_embeddings, "use_cache": True,
    }  # fmt: skip


def _special_ids(ours: OurModel) -> dict[str, Any]:
    ends = list(dict.fromkeys([ours.tokenizer.end_of_text, *(ours.model.end_token_ids or [])]))
    end = ends[0] if len(ends) == 1 else ends
    return {"bos_token_id": ours.begin, "eos_token_id": end, "pad_token_id": ours.tokenizer.end_of_text}


def _rows(ours: OurModel, dtype: torch.dtype) -> int:
    """Count the rows of embedding and head in the folder: one for MASK behind the others, if it is needed.

    An autoregressive model never reads MASK at block size 1. Its row is left out where it is the mean of the others,
    as an importer makes it: whoever reads the folder makes it again.
    """
    if ours.model.mask_token_id is not None:
        return max(ours.n_ids, ours.model.mask_token_id + 1)
    if ours.model.prediction == "next_token":
        rows = ours.tensors[EMBEDDING].to(dtype)
        text = rows[: ours.n_ids]
        mean = mean_row(text[start:end] for start, end in pieces_of(text.shape))
        if torch.equal(mean.to(dtype), rows[ours.n_ids]):
            return ours.n_ids
    return ours.n_ids + 1


def _check_names(ours: OurModel) -> None:
    """Raise a ValueError for weights that are not those of the configuration."""
    expected = set(shapes_of(ours.model, ours.n_ids))
    if wrong := sorted(expected ^ set(ours.tensors)):
        raise ValueError(f"checkpoint is of another architecture: {first_few(wrong)}")


def _streamed(ours: OurModel, names: Names, rows: int) -> list[StreamedTensor]:
    def tensor(name: str, shape: tuple[int, ...]) -> StreamedTensor:
        def parts() -> Iterator[Tensor]:
            stored = ours.tensors[name]
            if name in (EMBEDDING, HEAD):
                stored = stored[:rows]
            written = (len(stored), *shape[1:])
            if stored.shape != written or (name != HEAD and written != shape):
                raise ValueError(f"checkpoint is of another architecture: {name} {list(stored.shape)}")
            for start, end in pieces_of(written):
                yield stored[start:end]
            if len(stored) < shape[0]:  # MASK, which our head has no row for
                yield torch.zeros(shape[0] - len(stored), *shape[1:])

        return StreamedTensor(names.theirs(name), shape, parts)

    return [tensor(name, shape) for name, shape in shapes_of(ours.model, rows).items()]
