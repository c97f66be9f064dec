"""Corpora: what a name, path or Hub id gives, and what is said when it gives nothing."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.data.corpora import CORPORA
from hybrid.data.corpora.files import TableFiles, TextFiles, sections
from hybrid.data.corpora.hub import Hub
from hybrid.data.corpora.listing import find_files
from hybrid.data.corpora.locating import locate
from hybrid.data.corpora.source import Document
from hybrid.storage.hashing import digest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def load(corpus, scratch: Path, **settings) -> list[Document]:
    documents = locate(str(corpus), **settings).load(scratch)
    return documents.read(list(range(len(documents))))


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, **columns: list) -> Path:
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns).to_parquet(str(path))
    return path


@pytest.mark.slow
def test_pydocs_is_a_few_megabytes_of_prose(tmp_path) -> None:
    source = CORPORA["pydocs"]()
    documents = source.load(tmp_path)
    everything = documents.read(range(len(documents)))
    texts = [document.text for document in everything]
    assert 1.5e6 < sum(map(len, texts)) < 4e6
    assert len(texts) > 300
    assert everything == source.load(tmp_path).read(range(len(documents)))
    assert any("Assert statements are a convenient way to insert debugging assertions" in text for text in texts)
    assert any(json.__doc__.strip().splitlines()[0] in text for text in texts)  # type: ignore[union-attr]
    words = " ".join(texts).split()
    assert words.count("the") / len(words) > 0.03  # English, not code


def test_stdlib_is_source_without_tests_and_third_parties(tmp_path) -> None:
    documents = CORPORA["stdlib"]().load(tmp_path)
    texts = [document.text for document in documents.read(range(len(documents)))]
    assert 5e6 < sum(map(len, texts)) < 3e7
    assert Path(json.__file__).read_text(encoding="utf-8") in texts
    assert Path(pytest.__file__).read_text(encoding="utf-8") not in texts
    assert locate("stdlib").identity() == CORPORA["stdlib"]().identity()


def test_text_files_are_whole_documents_in_sorted_order(tmp_path) -> None:
    for name, text in (
        ("b.txt", "second\r\n\r\nline"),
        ("a.md", "\ufefffirst é"),
        (".hidden.txt", "no"),
        ("c.bin", "no"),
    ):
        (tmp_path / name).write_bytes(text.encode())
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.txt").write_text("third")
    expected = [Document("first é"), Document("second\r\n\r\nline"), Document("third")]
    assert load(tmp_path, tmp_path / "scratch") == expected
    assert load(tmp_path / "**" / "*.txt", tmp_path / "scratch") == expected[1:]
    assert load(tmp_path / "*.bin", tmp_path / "scratch", format="text") == [Document("no")]


@given(text=st.text(alphabet="ab.\n \r", max_size=400), smallest=st.integers(1, 40), most=st.integers(1, 9))
def test_sections_concatenate_to_the_text(text: str, smallest: int, most: int) -> None:
    pieces = sections(text, smallest, most)
    assert "".join(pieces) == text
    assert len(pieces) <= most
    assert all(len(piece) >= min(smallest, len(text)) for piece in pieces)


def test_a_lone_text_file_is_cut_at_blank_lines(tmp_path) -> None:
    text = "".join(f"{'word ' * 30}{i}\nline\n\n" for i in range(100))
    (tmp_path / "book.txt").write_text(text)
    documents = load(tmp_path / "book.txt", tmp_path)
    assert len(documents) > 8
    assert "".join(document.text for document in documents) == text
    assert all(document.text.endswith("\n\n") for document in documents)


def test_jsonl_rows_are_documents(tmp_path) -> None:
    rows = [{"text": "2024-01-01", "n": 1}, {"text": "2024-01-02", "n": "x"}, {"text": "é\r\n🙂"}]
    folder = tmp_path / "rows"
    folder.mkdir()
    path = write_jsonl(folder / "a.jsonl", rows)
    assert load(path, tmp_path / "s") == [Document(row["text"]) for row in rows]  # dates stay as they were written
    write_jsonl(folder / "b.jsonl", [{"text": "more"}])
    assert len(load(folder, tmp_path / "s2")) == 4
    assert load(path, tmp_path / "s3", column="text") == load(path, tmp_path / "s4", format="jsonl")


def test_prompt_and_completion(tmp_path) -> None:
    rows = [{"prompt": "1+1=", "completion": "2"}, {"prompt": "", "completion": "x"}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    assert load(path, tmp_path / "s") == [Document("2", "1+1="), Document("x", "")]
    assert load(path, tmp_path / "t", column="completion") == [Document("2"), Document("x")]


def test_parquet_column(tmp_path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=["one", "two"], other=["x", "y"], n=[1, 2])
    assert load(path, tmp_path / "s") == [Document("one"), Document("two")]
    assert load(path, tmp_path / "t", column="other") == [Document("x"), Document("y")]
    with pytest.raises(ValueError, match=r"data.column: 'words' is not a column of .*text, other, n.*set data.column"):
        load(path, tmp_path / "u", column="words")
    with pytest.raises(ValueError, match=r"data.column: 'n' of .* holds int64, not text"):
        load(path, tmp_path / "v", column="n")
    nulls = write_parquet(tmp_path / "b.parquet", text=["one", None])
    with pytest.raises(ValueError, match=r"data.column: 'text' is null in row 1 of"):
        load(nulls, tmp_path / "w")


def test_a_hub_dataset_is_loaded_from_a_folder_with_two_splits(tmp_path) -> None:
    """`load_dataset` treats a folder like a repository of the Hub."""
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", [{"body": f"{split} {i}"} for i in range(3)])
    hub = Hub(str(tmp_path), COMMIT, None, "test", "body", str(tmp_path / "cache"))
    documents = hub.load(tmp_path / "scratch")
    assert documents.read([2, 0]) == [Document("test 2"), Document("test 0")]
    with pytest.raises(
        ValueError, match=r"data.corpus: .*split 'dev' could not be loaded \(.*one of.*\); .*data.split"
    ):
        Hub(str(tmp_path), COMMIT, None, "dev", "body", str(tmp_path / "cache")).load(tmp_path)


def test_a_hub_id_needs_a_commit_and_passes_all_settings_on(tmp_path, monkeypatch) -> None:
    for revision in (None, "main"):
        with pytest.raises(
            ValueError, match=r"data.corpus: 'owner/name' .* Hub needs data.revision=COMMIT \(40 digits\)"
        ):
            locate("owner/name", revision=revision)
    calls = []

    def load_dataset(*args, **kwargs):
        import datasets

        calls.append((args, kwargs))
        return datasets.Dataset.from_dict({"text": ["a", "b"]})

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    source = locate("owner/name", subset="en", split="test", revision=COMMIT, cache_dir="there")
    assert source.load(tmp_path).read([1]) == [Document("b")]
    assert calls == [(("owner/name", "en"), {"revision": COMMIT, "split": "test", "cache_dir": "there"})]
    assert source.identity() != locate("owner/name", subset="en", revision=COMMIT).identity()


def test_a_hub_that_does_not_answer_is_one_line(tmp_path, monkeypatch) -> None:
    def load_dataset(*args, **kwargs):
        raise ConnectionError("Couldn't reach\n'owner/name' on the Hub")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"data.corpus: 'owner/name' .*Couldn't reach 'owner/name'.*network") as caught:
        locate("owner/name", revision=COMMIT).load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "corpus, message",
    [
        ("pydoc", r"data.corpus: 'pydoc' is not one of block_markov, .*did you mean 'pydocs'.*file.*data.revision"),
        ("./nothing", r"data.corpus: './nothing': no such file or folder.*check the path"),
        ("data/missing.jsonl", r"data.corpus: 'data/missing.jsonl': no such file"),
        ("missing/*.txt", r"data.corpus: 'missing/\*.txt': no such file"),
    ],
)
def test_a_corpus_that_is_not_there(corpus: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        locate(corpus)


@pytest.mark.parametrize("typed", ["my/text", "./my/texst", "my/TEXTS.txt"])
def test_a_near_path_is_named(typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my" / "texts").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^data.corpus: .* \(did you mean 'my/texts'\?\)"):
        locate(typed)
    with pytest.raises(ValueError, match=r"^(?!.*did you mean).*data.revision=COMMIT \(40 digits\), not 'main'$"):
        locate("my/poems", revision="main")


def test_a_near_name_in_this_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "letters").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"did you mean 'letters'"):
        locate("leters")


def test_folders_that_do_not_say_which_format(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"data.corpus: no .*\.txt.*\.parquet.* files in folder .*data.format"):
        locate(str(tmp_path))
    (tmp_path / "a.txt").write_text("a")
    write_jsonl(tmp_path / "b.jsonl", [{"text": "b"}])
    with pytest.raises(ValueError, match=r"data.format: .*several formats \(jsonl, text\); set data.format"):
        locate(str(tmp_path))
    assert isinstance(locate(str(tmp_path), format="text"), TextFiles)
    assert isinstance(locate(str(tmp_path), format="jsonl"), TableFiles)
    with pytest.raises(ValueError, match=r"data.format: 'csv' is not one of auto, jsonl, parquet, text"):
        locate(str(tmp_path), format="csv")


def test_broken_files_are_named_with_the_place(tmp_path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"good \xff bad")
    with pytest.raises(ValueError, match=r"data.corpus: .*a.txt is not UTF-8 \(byte 5\); convert"):
        load(path, tmp_path)
    path = tmp_path / "b.jsonl"
    path.write_bytes(b'{"text": "x"}\n{"text": "\xe9"}\n')
    with pytest.raises(ValueError, match=r"data.corpus: .*b.jsonl is not UTF-8 \(byte 24\)"):
        load(path, tmp_path / "s1")
    path.write_text('{"text": "x"}\n\n{"text": "y"\n')
    with pytest.raises(ValueError, match=r"data.corpus: .*b.jsonl, line 3: not JSON .*fix this line"):
        load(path, tmp_path / "s2")
    path.write_text('{"text": "x"}\n["y"]\n')
    with pytest.raises(ValueError, match=r"b.jsonl, line 2: a list; every line must be one JSON object"):
        load(path, tmp_path / "s3")
    path.write_text('{"text": "x"}\n{"text": 5}\n')
    with pytest.raises(ValueError, match=r"data.column: .*b.jsonl, line 2: 'text' is 5; it must be a string"):
        load(path, tmp_path / "s4")
    path.write_text('{"text": "x"}\n{"txt": "y"}\n')
    with pytest.raises(ValueError, match=r"data.column: .*b.jsonl, line 2: 'text' is missing"):
        load(path, tmp_path / "s5")
    path.write_text('{"text": "x"}\n{"text": "\\ud800"}\n')
    with pytest.raises(ValueError, match=r"data.column: .*b.jsonl, line 2: 'text' has a lone surrogate.*remove"):
        load(path, tmp_path / "s6")
    path.write_text("\n\n")
    with pytest.raises(ValueError, match=r"data.corpus: .*b.jsonl: no documents"):
        load(path, tmp_path / "s7")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"data.corpus: .*c.parquet could not be read as parquet .*check the files"):
        load(tmp_path / "c.parquet", tmp_path / "s8")


def test_identity_follows_content_and_settings(tmp_path, monkeypatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x", "other": "y"}])
    first = locate(str(path)).identity()
    os.utime(path, (1, 1))
    assert locate(str(path)).identity() == first
    assert locate(str(path), column="other").identity() != first
    path.write_text(path.read_text().replace("x", "z"))
    os.utime(path, (1, 1))  # same size, same time, other content
    assert locate(str(path)).identity() != first
    monkeypatch.setattr("hybrid.data.corpora.files.HASHED_BYTES", 1)  # a large file is known by its size and time
    first = locate(str(path)).identity()
    os.utime(path, (2, 2))
    assert locate(str(path)).identity() != first
    assert digest("ab", "c") != digest("a", "bc")


def test_settings_of_the_hub_that_are_ignored_elsewhere_are_reported(tmp_path) -> None:
    with pytest.warns(UserWarning, match=r"data.revision, data.subset: ignored, because data.corpus=pydocs"):
        locate("pydocs", revision=COMMIT, subset="en")


def test_find_files_sorts_and_expands(tmp_path) -> None:
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text("x")
    assert [path.name for path in find_files(str(tmp_path / "*.txt"))] == ["a.txt", "b.txt"]
    assert find_files(str(tmp_path / "none")) == ()
