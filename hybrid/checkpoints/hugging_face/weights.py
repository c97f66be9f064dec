"""Their weights by our names, one in memory at a time, with a row for MASK in the embedding where theirs has none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from hybrid.checkpoints.hugging_face.names import OUTER, shapes_of, their_name
from hybrid.checkpoints.hugging_face.weight_files import StoredTensor
from hybrid.checkpoints.module_state import first_few
from hybrid.model.config import ModelConfig

EMBEDDING, HEAD = "embedding.weight", "head_weight"
_NO_WEIGHTS = ("rotary_emb.inv_freq",)
"""Ends of names that earlier versions stored beside the weights: functions of the settings."""


class TheirWeights(Mapping[str, Tensor]):
    """The tensors of `stored` by our names.

    Args:
        rows: of their embedding and head.
        n_ids: rows of our head. Our embedding has as many, and one for MASK where that is an id behind them; if theirs
            ends before it, it is the mean of the rows.

    Raises:
        ValueError: names that are missing, unexpected, or of another shape; a head beside tied weights that is another.
    """

    def __init__(self, stored: Mapping[str, StoredTensor], model: ModelConfig, rows: int, n_ids: int):
        expected = {their_name(name): shape for name, shape in shapes_of(model, rows).items()}
        _check(stored, expected, model.tied_embeddings)
        self.n_ids = n_ids
        self.n_embeddings = max(n_ids, n_ids + 1 if model.mask_token_id is None else model.mask_token_id + 1)
        self.stored = {name: stored[their_name(name)] for name in shapes_of(model, rows)}

    def __getitem__(self, name: str) -> Tensor:
        stored = self.stored[name]
        if name == EMBEDDING:
            return stored.read()[: self.n_embeddings] if stored.shape[0] >= self.n_embeddings else _with_mean(stored)
        return stored.read()[: self.n_ids] if name == HEAD else stored.read()

    def __contains__(self, name: object) -> bool:
        return name in self.stored  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def mean_row(pieces: Iterable[Tensor]) -> Tensor:
    """(1/V) sum_v e_v in float64, of rows that come piece by piece."""
    n, total = 0, torch.zeros((), dtype=torch.float64)
    for piece in pieces:
        n, total = n + len(piece), total + piece.double().sum(0)
    return total / n


def _with_mean(embedding: StoredTensor) -> Tensor:
    """(V, dim) -> (V + 1, dim), never both in memory."""
    rows = embedding.shape[0]
    result = torch.empty(rows + 1, *embedding.shape[1:], dtype=embedding.dtype)

    def pieces() -> Iterator[Tensor]:
        for start, piece in embedding.pieces():
            result[start : start + len(piece)] = piece
            yield piece

    result[rows] = mean_row(pieces())
    return result


def _check(stored: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]], is_tied: bool) -> None:
    """Raise a ValueError that lists what of the names and shapes is not as the settings say."""
    head, embedding = OUTER[HEAD], OUTER[EMBEDDING]
    known = {name for name in stored if name.endswith(_NO_WEIGHTS)} | ({head} if is_tied else set())
    shapes = {name: stored[name].shape for name in expected if name in stored}
    reshaped = [
        f"{name} {list(shape)} instead of {list(expected[name])}"
        for name, shape in shapes.items()
        if shape != expected[name]
    ]
    lists = (
        ("missing", [name for name in expected if name not in stored]),
        ("unexpected", [name for name in stored if name not in expected and name not in known]),
        ("of another shape", reshaped),
    )
    if problems := [f"{what} {first_few(names)}" for what, names in lists if names]:
        raise ValueError(f"the weights are not those of config.json: {'; '.join(problems)}")
    if is_tied and head in stored and not _is_same(stored[head], stored[embedding]):
        raise ValueError(
            f"config.json: tie_word_embeddings is true, and {head} is another matrix than {embedding}; set it to false "
            "if the head has weights of its own, or remove those that are not used"
        )


def _is_same(one: StoredTensor, other: StoredTensor) -> bool:
    if (one.shape, one.kind) != (other.shape, other.kind):
        return False
    return all(torch.equal(a, b) for (_, a), (_, b) in zip(one.pieces(), other.pieces(), strict=True))
