"""Their weights by our names, one in memory at a time, with a row for MASK in the embedding where theirs has none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from hybrid.checkpoints.hugging_face.names import Names, shapes_of
from hybrid.checkpoints.hugging_face.weight_files import StoredTensor
from hybrid.checkpoints.module_state import first_few
from hybrid.model.config import ModelConfig

EMBEDDING, HEAD = "embedding.weight", "head_weight"
_NO_WEIGHTS = ("rotary_emb.inv_freq",)
"""Ends of names that earlier versions stored beside the weights: functions of the settings."""


class TheirWeights(Mapping[str, Tensor]):
    """The tensors of `stored` by our names.

    Args:
        names: theirs, of each of ours.
        rows: of their embedding and head.
        n_ids: rows of our head. Our embedding has as many, and one for MASK where that is an id behind them; if theirs
            ends before it, it is the mean of the rows.

    Raises:
        ValueError: names that are missing, unexpected, or of another shape; a head beside tied weights that is another.
    """

    def __init__(
        self, stored: Mapping[str, StoredTensor], names: Names, model: ModelConfig, rows: int, n_ids: int
    ):  # fmt: skip
        shapes, head = shapes_of(model, rows), names.theirs(HEAD)
        expected = {names.theirs(name): shape for name, shape in shapes.items()}
        _check(stored, expected, head if model.tied_embeddings else None)
        if model.tied_embeddings:
            _check_head(stored, head, names.theirs(EMBEDDING))
        self.n_ids = n_ids
        self.n_embeddings = max(n_ids, n_ids + 1 if model.mask_token_id is None else model.mask_token_id + 1)
        self.stored = {name: stored[names.theirs(name)] for name in shapes}

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


def _check(stored: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]], unread: str | None) -> None:
    """Raise a ValueError that lists what of the names and shapes is not as the settings say; `unread` may be there."""
    reshaped = [
        f"{name} {list(stored[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in stored and stored[name].shape != shape
    ]
    known = {*expected, unread}
    lists = (
        ("missing", [name for name in expected if name not in stored]),
        ("unexpected", [name for name in stored if name not in known and not name.endswith(_NO_WEIGHTS)]),
        ("of another shape", reshaped),
    )
    if problems := [f"{what} {first_few(names)}" for what, names in lists if names]:
        raise ValueError(f"the weights are not those of config.json: {'; '.join(problems)}")


def _check_head(stored: Mapping[str, StoredTensor], head: str, embedding: str) -> None:
    """Raise a ValueError for a head that is stored beside an embedding that it shares, and is another matrix."""
    if head in stored and not _is_same(stored[head], stored[embedding]):
        raise ValueError(
            f"config.json: tie_word_embeddings is true, and {head} is another matrix than {embedding}; set it to false "
            "if the head has weights of its own, or remove those that are not used"
        )


def _is_same(one: StoredTensor, other: StoredTensor) -> bool:
    if (one.shape, one.kind) != (other.shape, other.kind):
        return False
    return all(torch.equal(a, b) for (_, a), (_, b) in zip(one.pieces(), other.pieces(), strict=True))
