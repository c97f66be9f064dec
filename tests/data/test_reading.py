"""The text of a file: one rule, packed files unpacked, and what is no UTF-8 called by its name."""

import gzip

import pytest

from hybrid.data.corpora.locating import locate
from hybrid.data.corpora.reading import read_text
from hybrid.data.corpora.source import Document


def load(corpus, scratch, **settings) -> list[Document]:
    documents = locate(str(corpus), **settings).load(scratch)
    return documents.read(list(range(len(documents))))


def test_a_byte_order_mark_goes_and_everything_else_stays(tmp_path) -> None:
    path = tmp_path / "a.txt"
    for content, text in (
        (b"\xef\xbb\xbfa\r\nb\rc\n\n", "a\r\nb\rc\n\n"),
        (b"\xef\xbb\xbf\xef\xbb\xbfa", "\ufeffa"),
        (b" a\t\n", " a\t\n"),
        (b"a\x00b", "a\x00b"),
        (b"", ""),
    ):
        path.write_bytes(content)
        assert read_text(path) == text


def pack_zstd(content: bytes) -> bytes:
    import pyarrow

    return pyarrow.compress(content, codec="zstd", asbytes=True)


PACK = {"gz": gzip.compress, "zst": pack_zstd}


@pytest.mark.parametrize("kind", PACK)
def test_packed_files_are_read(kind: str, tmp_path) -> None:
    pack, rows = PACK[kind], b'{"text": "one \xc3\xa9"}\n{"text": "two"}\n'
    (tmp_path / f"a.jsonl.{kind}").write_bytes(pack(rows[:19]) + pack(rows[19:]))  # as `cat` joins two
    assert load(tmp_path / f"a.jsonl.{kind}", tmp_path / "s1") == [Document("one é"), Document("two")]
    (tmp_path / f"a.json.{kind}").write_bytes(pack(b'[{"text": "one"},\n {"text": "two"}]'))
    assert load(tmp_path / f"a.json.{kind}", tmp_path / "s2") == [Document("one"), Document("two")]
    (tmp_path / f"a.txt.{kind}").write_bytes(pack(b"\xef\xbb\xbfhello\r\n" * 9))
    assert read_text(tmp_path / f"a.txt.{kind}") == ("hello\r\n" + "\ufeffhello\r\n" * 8)
    (tmp_path / "part-0").write_bytes(pack(rows))
    assert len(load(tmp_path / "part-0", tmp_path / "s3", format="jsonl")) == 2


@pytest.mark.parametrize("kind", PACK)
def test_damaged_packed_files_are_named(kind: str, tmp_path) -> None:
    packed = PACK[kind](b"hello " * 1000)
    middle = len(packed) // 2
    for damaged in (packed[:-3], packed[:6], packed[:middle] + bytes(8) + packed[middle + 8 :], packed + b"more"):
        (tmp_path / f"a.txt.{kind}").write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"data.corpus: .*a.txt.{kind} is packed and damaged \(.+\)"):
            read_text(tmp_path / f"a.txt.{kind}")


@pytest.mark.parametrize(
    "content, what",
    [
        ("hello".encode("utf-16"), r"is UTF-16 text; convert it \(iconv -f UTF-16"),
        ("日本語".encode("utf-16"), r"is UTF-16 text"),
        ("hello, world".encode("utf-16-le"), r"is UTF-16 text"),
        ("hello, world".encode("utf-16-be"), r"is UTF-16 text"),
        ("hello".encode("utf-32"), r"is UTF-32 text"),
        (b"\x80\x03\x00\x01\xff", r"is binary data, not text"),
        (b"BZh91AY\xff", r"is packed with bzip2; unpack it"),
        (b"PAR1\x15\x04\xff", r"is a parquet file; set data.format=parquet"),
        ("café".encode("latin-1"), r"is not UTF-8 \(byte 3\); convert it from the encoding.*ENCODING.*wrong guess"),
    ],
)
@pytest.mark.parametrize("format", ["text", "jsonl"])
def test_what_is_not_utf8_is_called_by_its_name(content: bytes, what: str, format: str, tmp_path) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=what) as caught:
        load(tmp_path / "a", tmp_path / "s", format=format)
    assert "LATIN1" not in str(caught.value)


def test_errors_of_the_system_name_the_file_and_the_corpus(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    documents = locate(str(tmp_path)).load(tmp_path)
    (tmp_path / "b.txt").unlink()  # between listing and reading
    with pytest.raises(ValueError, match=r"data.corpus: .*b.txt: No such file or directory"):
        documents.read([0, 1])
