"""Rows of tokens, and which of them a step trains on."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_corpus import cache_folders, corpus_file, prepared, texts_of, write_jsonl  # noqa: F401 (a fixture)

from hybrid.data.batches import batch_rows, shard


def test_document_numbers_equal_a_count_of_earlier_ends(tmp_path, corpus: str) -> None:
    data = prepared(tmp_path, corpus=corpus, document_mask=True, seq_len=48)
    batch = data.train.rows([0, 5, 2])
    assert batch.documents is not None
    for tokens, documents in zip(batch.tokens.tolist(), batch.documents.tolist(), strict=True):
        assert documents == [tokens[:i].count(256) for i in range(len(tokens))]
    assert batch.documents.max() > 0
    moved = batch.to("meta")
    assert moved.tokens.is_meta and moved.is_target.is_meta
    assert moved.documents is not None and moved.documents.is_meta


def test_rows_outside_are_refused(tmp_path, corpus: str) -> None:
    data = prepared(tmp_path, corpus=corpus)
    with pytest.raises(IndexError):
        data.train.rows([data.train.n_rows])
    with pytest.raises(IndexError):
        data.train.rows([-1])


@given(n_rows=st.integers(1, 40), size=st.integers(1, 50), seed=st.integers(0, 5))
def test_every_row_comes_once_per_epoch(n_rows: int, size: int, seed: int) -> None:
    steps = math.ceil(3 * n_rows / size)
    stream = np.concatenate([batch_rows(n_rows, size, seed, step) for step in range(steps)])
    for epoch in range(3):
        assert sorted(stream[epoch * n_rows : (epoch + 1) * n_rows]) == list(range(n_rows))


def test_order_is_a_function_of_seed_and_step() -> None:
    first = [batch_rows(1000, 8, 0, step).tolist() for step in range(300)]
    assert first[250] == batch_rows(1000, 8, 0, 250).tolist()  # no replay
    assert first[0] != batch_rows(1000, 8, 1, 0).tolist()
    assert first[0] != first[125]  # another epoch, another order
    assert batch_rows(1000, 8, 0, 0).dtype == np.int64
    again = batch_rows(1000, 8, 0, 3)
    again[:] = 0  # the caller's copy, not the cached permutation
    assert batch_rows(1000, 8, 0, 3).tolist() == first[3]


def test_ranks_share_a_batch_without_overlap() -> None:
    batch = batch_rows(100, 12, 0, 3)
    assert np.concatenate([shard(batch, rank, 4) for rank in range(4)]).tolist() == batch.tolist()
    with pytest.raises(ValueError, match="12 rows can't be shared equally by 5 ranks"):
        shard(batch, 0, 5)
