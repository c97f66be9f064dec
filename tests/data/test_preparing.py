"""Data: the split, the packing and the order of rows; kinds of corpora."""

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from small_corpus import cache_folders, corpus_file, prepared, texts_of, write_jsonl  # noqa: F401 (a fixture)

from hybrid.data.config import DataConfig
from hybrid.data.corpora import CORPORA
from hybrid.data.corpora.source import Document, InMemory
from hybrid.data.preparing import Data, prepare


def documents_of(data: Data, split: str) -> list[str]:
    """Cut the flat array at end of text."""
    tokens = np.asarray(getattr(data, split).tokens)
    ends = np.flatnonzero(tokens == data.tokenizer.end_of_text)
    assert ends[-1] == len(tokens) - 1  # the last document is closed too
    return [data.tokenizer.decode(piece) for piece in np.split(tokens, ends + 1)[:-1]]


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe"])
def test_packed_tokens_are_the_documents(tmp_path, corpus: str, tokenizer: str) -> None:
    data = prepared(tmp_path, corpus=corpus, tokenizer=tokenizer, vocab_size=300, validation_fraction=0.2)
    train, validation = documents_of(data, "train"), documents_of(data, "validation")
    assert sorted(train + validation) == sorted(texts_of(200))
    assert 15 < len(validation) < 75  # 0.2 of 200 within 5 standard deviations
    in_order = [text for text in texts_of(200) if text in set(train)]
    assert train != in_order  # shuffled
    for split, documents in ((data.train, train), (data.validation, validation)):
        assert split.counts.bytes == sum(len(text.encode()) for text in documents)
        assert split.counts.documents == len(documents)
        assert split.bytes_per_token == split.counts.bytes / split.n_tokens
        assert split.n_rows == split.n_tokens // 16
        batch = split.rows(range(split.n_rows))
        assert batch.tokens.dtype == torch.int64 and batch.tokens.shape == (split.n_rows, 16)
        assert batch.tokens.flatten().tolist() == split.tokens[: split.n_rows * 16].tolist()
        assert bool(batch.is_target.all()) and batch.documents is None


def test_identical_documents_are_never_in_both_splits(tmp_path) -> None:
    rows = [{"text": text} for text in texts_of(40) * 3]
    data = prepared(tmp_path, corpus=write_jsonl(tmp_path / "a.jsonl", rows), validation_fraction=0.3)
    train, validation = Counter(documents_of(data, "train")), Counter(documents_of(data, "validation"))
    assert not set(train) & set(validation)
    assert set((train + validation).values()) == {3}


def test_the_split_of_a_document_does_not_depend_on_the_others(tmp_path) -> None:
    few = [{"text": text} for text in texts_of(100)]
    more = [{"text": text} for text in texts_of(100, seed=1)] + few[::-1]
    small = prepared(tmp_path, corpus=write_jsonl(tmp_path / "a.jsonl", few), validation_fraction=0.3)
    large = prepared(tmp_path, corpus=write_jsonl(tmp_path / "b.jsonl", more), validation_fraction=0.3)
    assert set(documents_of(small, "validation")) <= set(documents_of(large, "validation"))
    assert set(documents_of(small, "train")) <= set(documents_of(large, "train"))


def test_both_splits_hold_a_document_even_if_there_are_two(tmp_path) -> None:
    rows = [{"text": "a" * 20}, {"text": "b" * 20}, {"text": ""}, {"text": " \n"}]
    corpus = write_jsonl(tmp_path / "a.jsonl", rows)
    for fraction in (1e-9, 1 - 1e-9):
        with warnings.catch_warnings(action="ignore"):  # that training has half of the text instead of all
            data = prepared(tmp_path, corpus=corpus, validation_fraction=fraction)
        assert sorted(documents_of(data, "train") + documents_of(data, "validation")) == ["a" * 20, "b" * 20]


def test_only_completions_are_targets(tmp_path) -> None:
    rows = [{"prompt": f"é{i}+{i}=", "completion": f"{2 * i}!"} for i in range(60)]
    data = prepared(tmp_path, corpus=write_jsonl(tmp_path / "a.jsonl", rows), validation_fraction=0.3)
    seen = []
    for split in (data.train, data.validation):
        batch = split.rows(range(split.n_rows))
        tokens, is_target = batch.tokens.flatten().tolist(), batch.is_target.flatten().tolist()
        assert batch.is_target.dtype == torch.bool
        answer: list[int] = []
        prompt: list[int] = []
        for token, target in zip(tokens, is_target, strict=True):
            (answer if target else prompt).append(token)
            if token == 256:
                assert target  # the end of the answer is learned
                seen.append((bytes(prompt).decode(), bytes(answer[:-1]).decode()))
                answer, prompt = [], []
    expected = {(row["prompt"], row["completion"]) for row in rows}
    assert set(seen) <= expected and len(seen) > 50
    counts = [split.counts for split in (data.train, data.validation)]
    assert sum(c.target_bytes for c in counts) == sum(len(row["completion"]) for row in rows)
    assert sum(c.target_tokens for c in counts) == sum(len(row["completion"]) + 1 for row in rows)
    assert sum(c.bytes for c in counts) == sum(len((row["prompt"] + row["completion"]).encode()) for row in rows)
    assert data.train.bytes_per_token == counts[0].target_bytes / counts[0].target_tokens


# The order of rows


# Kinds of corpora


def test_text_files_by_folder_glob_and_alone(tmp_path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, text in enumerate(texts_of(30)):
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")
    for corpus in (folder, folder / "*.txt"):
        data = prepared(tmp_path, corpus=str(corpus), validation_fraction=0.3)
        assert sorted(documents_of(data, "train") + documents_of(data, "validation")) == sorted(texts_of(30))
    lone = tmp_path / "book.txt"
    lone.write_text("\n\n".join(texts_of(300)), encoding="utf-8")
    data = prepared(tmp_path, corpus=str(lone), validation_fraction=0.3)
    assert data.train.counts.bytes + data.validation.counts.bytes == lone.stat().st_size


def test_parquet(tmp_path) -> None:
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"body": texts_of(50)}).to_parquet(str(tmp_path / "a.parquet"))
    data = prepared(tmp_path, corpus=str(tmp_path / "a.parquet"), column="body", validation_fraction=0.3)
    assert sorted(documents_of(data, "train") + documents_of(data, "validation")) == sorted(texts_of(50))


def test_a_corpus_of_the_users_own(tmp_path, monkeypatch) -> None:
    class Mine:
        def identity(self) -> str:
            return "version 1"

        def load(self, folder: Path) -> InMemory:
            return InMemory([Document(text) for text in texts_of(50)])

    monkeypatch.setitem(CORPORA, "mine", Mine)
    data = prepared(tmp_path, corpus="mine", validation_fraction=0.3)
    assert sorted(documents_of(data, "train") + documents_of(data, "validation")) == sorted(texts_of(50))


def test_documents_of_a_group_stay_together(tmp_path, monkeypatch) -> None:
    """40 groups of 5; the split does not depend on the text, so other texts in the same groups split alike."""

    def split(word: str) -> list[set[str]]:
        class Grouped:
            def identity(self) -> str:
                return word

            def load(self, folder: Path) -> InMemory:
                return InMemory([Document(f"{i % 40} {word} {i}", group=str(i % 40)) for i in range(200)])

        monkeypatch.setitem(CORPORA, "grouped", Grouped)
        data = prepared(tmp_path, corpus="grouped", validation_fraction=0.3)
        documents = [documents_of(data, name) for name in ("train", "validation")]
        assert all(Counter(text.split()[0] for text in part).most_common()[-1][1] == 5 for part in documents)
        return [{text.split()[0] for text in part} for part in documents]

    train, validation = split("a")
    assert not train & validation and len(train | validation) == 40 and len(validation) > 3
    assert split("b") == [train, validation]


def test_a_large_vocabulary_needs_wider_integers(tmp_path, corpus: str) -> None:
    import tokenizers

    words = {f"w{i}": i for i in range(70000)}
    words["sat"] = 70000
    model = tokenizers.models.WordLevel(words, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.warns(UserWarning, match="does not give the text back"):
        data = prepared(tmp_path, corpus=corpus, tokenizer=str(tmp_path / "tokenizer.json"))
    assert data.train.tokens.dtype == np.uint32
    assert data.train.tokens.max() == data.tokenizer.end_of_text == 70001


# What is said when it can't be done


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"validation_fraction": 0.0}, r"data.validation_fraction: 0.0 must lie between 0 and 1"),
        ({"tokenizer": "caf\udce9.json"}, r"data.tokenizer: 'caf.udce9.json' is not UTF-8, so the record of the run"),
        ({"cache_dir": "caf\udce9"}, r"data.cache_dir: 'caf.udce9' is not UTF-8"),
        ({"validation_fraction": float("nan")}, r"data.validation_fraction: nan"),
        ({"seq_len": 0}, r"data.seq_len: 0 is too small; it must be at least 1"),
        ({"tokenizer": "bytes"}, r"data.tokenizer: 'bytes' is not one of .*did you mean 'byte'.*tokenizer.json"),
        ({"tokenizer": "bpe", "vocab_size": 256}, r"data.vocab_size: 256 is too small; it must be at least 257"),
        ({"format": "csv"}, r"data.format: 'csv' is not one of auto, jsonl, parquet, text"),
        (
            {"seq_len": 10**6},
            r"data.seq_len: 1000000 is more than the \d+ tokens of the train split of .*lower data.seq",
        ),
        ({"seq_len": 1500}, r"data.seq_len: 1500 is more than .*validation split.*data.validation_fraction"),
        ({"cache_dir": "/proc/nowhere"}, r"data.cache_dir: .*'/proc/nowhere'.*HYBRID_CACHE"),
        ({"column": "words"}, r"data.column: 'words' is not a column of .*it has text"),
    ],
)
def test_errors_name_key_value_and_way_out(tmp_path, corpus: str, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path, **{"corpus": corpus, **settings})


@pytest.mark.parametrize(
    "rows, held", [([{"text": ""}], "no documents with text"), ([{"text": "a"}] * 9, "only 1 dist")]
)
def test_too_few_documents(tmp_path, rows: list, held: str) -> None:
    with pytest.raises(ValueError, match=rf"data.corpus: .*a.jsonl' holds {held}.*add files, or rows"):
        prepared(tmp_path, corpus=write_jsonl(tmp_path / "a.jsonl", rows))
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match=r"data.corpus: .*empty.txt' holds no documents with text"):
        prepared(tmp_path, corpus=str(tmp_path / "empty.txt"))


def test_broken_text_is_named_before_anything_is_kept(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("good " * 10)
    (tmp_path / "b.txt").write_bytes(b"bad \xff")
    with pytest.raises(ValueError, match=r"data.corpus: .*b.txt is not UTF-8 \(byte 4\)"):
        prepared(tmp_path, corpus=str(tmp_path / "*.txt"))
    assert cache_folders(tmp_path) == []


@pytest.mark.slow
def test_pydocs_is_the_default_and_enough_for_rows_of_1024(tmp_path) -> None:
    data = prepare(DataConfig(seq_len=1024, cache_dir=str(tmp_path / "cache")))
    assert data.description["corpus"] == "pydocs"
    assert data.train.n_tokens > 1.5e6
    assert data.validation.n_rows > 20
