"""Data: the split, the packing, the cache and the order of rows."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybrid.corpora import CORPORA
from hybrid.data import Data, DataConfig, batch_rows, prepare, shard
from hybrid.files import Document, InMemory
from hybrid.tokenizer import ByteTokenizer, SubwordTokenizer


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def texts_of(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    words = ["the", "cat", "sat", "é", "日本", "on", "mat."]
    return [" ".join(rng.choice(words, size=rng.integers(3, 30))) + f" {i}" for i in range(count)]


@pytest.fixture
def corpus(tmp_path) -> str:
    return write_jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in texts_of(200)])


def prepared(tmp_path: Path, **settings) -> Data:
    return prepare(DataConfig(**{"seq_len": 16, "cache_dir": str(tmp_path / "cache"), **settings}))


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
        assert split.n_bytes == sum(len(text.encode()) for text in documents)
        assert split.counts.documents == len(documents)
        assert split.bytes_per_token == split.n_bytes / split.n_tokens
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
    for fraction in (1e-9, 1 - 1e-9):
        data = prepared(tmp_path, corpus=write_jsonl(tmp_path / "a.jsonl", rows), validation_fraction=fraction)
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


# The order of rows


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


# The cache


def cache_folders(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


def test_a_hit_builds_nothing_and_other_row_lengths_share_it(tmp_path, corpus: str, monkeypatch) -> None:
    first = prepared(tmp_path, corpus=corpus)
    monkeypatch.setattr("hybrid.data.build", lambda *_: pytest.fail("built again"))
    second = prepared(tmp_path, corpus=corpus, seq_len=32, document_mask=True)
    assert second.train.tokens.tolist() == first.train.tokens.tolist()
    assert isinstance(second.train.tokens, np.memmap)
    assert second.train.tokens.dtype == np.uint16
    assert cache_folders(tmp_path) == [first.description["fingerprint"]]


def test_everything_that_matters_changes_the_fingerprint(tmp_path, corpus: str) -> None:
    tokenizer = tmp_path / "saved"
    SubwordTokenizer.train(texts_of(9), 270).save(tokenizer)
    settings = [
        {},
        {"validation_fraction": 0.2},
        {"tokenizer": "char"},
        {"tokenizer": "bpe", "vocab_size": 300},
        {"tokenizer": "bpe", "vocab_size": 310},
        {"tokenizer": str(tokenizer / "tokenizer.json")},
    ]
    made = [prepared(tmp_path, corpus=corpus, **setting) for setting in settings]
    write_jsonl(Path(corpus), [{"text": text} for text in texts_of(150)])
    made.append(prepared(tmp_path, corpus=corpus))
    assert len({data.description["fingerprint"] for data in made}) == len(made) == len(cache_folders(tmp_path))
    assert made[0].description["corpus_sha256"] != made[-1].description["corpus_sha256"]
    assert made[0].description["corpus_sha256"] == made[2].description["corpus_sha256"]
    same = prepared(tmp_path, corpus=corpus, vocab_size=999)  # bytes have no vocab_size
    assert same.description == made[-1].description
    json.dumps(same.description)


DAMAGES = {
    "meta is missing": lambda folder: (folder / "meta.json").unlink(),
    "meta is cut": lambda folder: (folder / "meta.json").write_text('{"splits": '),
    "tokens are missing": lambda folder: (folder / "train.bin").unlink(),
    "tokens are cut": lambda folder: os.truncate(folder / "train.bin", 100),
    "tokens are other": lambda folder: (folder / "train.bin").write_bytes(bytes((folder / "train.bin").stat().st_size)),
    "tokenizer is missing": lambda folder: (folder / "tokenizer" / "tokenizer_kind.json").unlink(),
    "all is missing": lambda folder: [path.unlink() for path in folder.iterdir() if path.is_file()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_built_again(tmp_path, corpus: str, damage: str) -> None:
    first = prepared(tmp_path, corpus=corpus)
    expected = first.train.tokens.tolist()
    DAMAGES[damage](tmp_path / "cache" / first.description["fingerprint"])
    second = prepared(tmp_path, corpus=corpus)
    assert second.train.tokens.tolist() == expected
    assert cache_folders(tmp_path) == [first.description["fingerprint"]]  # nothing is left over


def test_a_build_that_fails_leaves_nothing(tmp_path, corpus: str, monkeypatch) -> None:
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hybrid.packing._Array.write", full)
    with pytest.raises(ValueError, match=r"data.cache_dir: .*No space left on device.*free some space"):
        prepared(tmp_path, corpus=corpus)
    assert cache_folders(tmp_path) == []


BUILD = """
import sys
from hybrid import data
assert not {"datasets", "tokenizers"} & set(sys.modules), "imported before they are needed"
print("ready", flush=True)
sys.stdin.readline()
config = data.DataConfig(corpus=sys.argv[1], cache_dir=sys.argv[2], seq_len=16, tokenizer="bpe", vocab_size=300)
print(data.prepare(config).train.tokens.sum())
"""


def test_two_processes_at_once(tmp_path, corpus: str) -> None:
    command = [sys.executable, "-c", BUILD, corpus, str(tmp_path / "cache")]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert len(cache_folders(tmp_path)) == 1


def test_the_loser_of_a_race_takes_what_the_winner_built(tmp_path, corpus: str, monkeypatch) -> None:
    """The winner's rename falls between the loser's look into the cache and its own rename."""
    save = ByteTokenizer.save
    winner = []

    def meanwhile(self, folder) -> None:
        monkeypatch.setattr(ByteTokenizer, "save", save)
        fingerprint = prepared(tmp_path, corpus=corpus).description["fingerprint"]
        winner.append((tmp_path / "cache" / fingerprint / "train.bin").stat().st_ino)
        save(self, folder)

    monkeypatch.setattr(ByteTokenizer, "save", meanwhile)
    data = prepared(tmp_path, corpus=corpus)
    assert cache_folders(tmp_path) == [data.description["fingerprint"]]
    assert (tmp_path / "cache" / data.description["fingerprint"] / "train.bin").stat().st_ino == winner[0]


def test_the_environment_names_the_cache(tmp_path, corpus: str, monkeypatch) -> None:
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    data = prepare(DataConfig(corpus=corpus, seq_len=16))
    assert cache_folders(tmp_path) == [data.description["fingerprint"]]


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
    assert data.train.n_bytes + data.validation.n_bytes == lone.stat().st_size


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
    data = prepared(tmp_path, corpus=corpus, tokenizer=str(tmp_path / "tokenizer.json"))
    assert data.train.tokens.dtype == np.uint32
    assert data.train.tokens.max() == data.tokenizer.end_of_text == 70001


# What is said when it can't be done


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"validation_fraction": 0.0}, r"data.validation_fraction: 0.0 must lie between 0 and 1"),
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


def test_pydocs_is_the_default_and_enough_for_rows_of_1024(tmp_path) -> None:
    data = prepare(DataConfig(seq_len=1024, cache_dir=str(tmp_path / "cache")))
    assert data.description["corpus"] == "pydocs"
    assert data.train.n_tokens > 1.5e6
    assert data.validation.n_rows > 20
