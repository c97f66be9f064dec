"""Rows of jsonl and parquet files, and of folders of `datasets`: what is read, and what is said of what can't be."""

import json
from pathlib import Path

import pytest

from hybrid.data.corpora.locating import locate
from hybrid.data.corpora.source import Document


def load(corpus, scratch, **settings) -> list[Document]:
    documents = locate(str(corpus), **settings).load(scratch)
    return documents.read(list(range(len(documents))))


def refused(corpus, scratch, **settings) -> str:
    with pytest.raises(ValueError) as caught:
        load(corpus, scratch, **settings)
    message = str(caught.value)
    assert len(message) < 800 and "\n" not in message
    return message


ROWS = [{"text": "one\n[", "n": [1]}, {"text": "é"}, {"text": '"}]'}]


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]])
def test_an_array_of_objects_is_read(indent: int | None, rows: list, tmp_path) -> None:
    path = tmp_path / "a.json"
    path.write_text("\ufeff\n " + json.dumps(rows, indent=indent, ensure_ascii=False) + "\n\n", encoding="utf-8")
    assert load(path, tmp_path / "s") == [Document(row["text"]) for row in rows]


@pytest.mark.parametrize(
    "text, message",
    [
        ('[\n{"text": "a"},\n{"text" "b"}\n]', r"a.json, line 3: not JSON (Expecting ':' delimiter)"),
        ('[\n{"text": "a"}\n{"text": "b"}\n]', r"a.json, line 3: not JSON (an array of rows, and then something else)"),
        ('[\n{"text": "a"},\n]', r"a.json, line 3: not JSON (Expecting value)"),
        ('[{"text": "a"}', r"a.json, line 1: not JSON"),
        ('[{"text": "a"}]\n{"text": "b"}', r"a.json, line 2: not JSON (an array of rows, and then something else)"),
        ('[\n\n"a"]', r"a.json, line 3: a str; every row must be one JSON object"),
        ("[]", r"no documents"),
        ('[\n{"text": 1}]', r"data.column: " + "{path}, line 2: 'text' is 1; it must be a string"),
        ('{\n"text": "a"\n}', r"line 1: not JSON (Expecting property name enclosed in double quotes, column"),
        ("x", r"in jsonl an object is one line: jq -c . makes it so"),
        ('{"text": "a", "n": ' + "[" * 100_000 + "]" * 100_000 + "}", "a.json, line 1: nested too deeply"),
        ('{"text": "a"}\n[' + "[" * 100_000, "a.json, line 2: nested too deeply"),
        ("[\n" + '{"a":' * 100_000, "a.json, line 2: nested too deeply"),
        ('{"text": "a", "n": ' + "9" * 5000 + "}", "a.json, line 1: 'Exceeds the limit"),
        ('{"text": {"long": "' + "x" * 64_000 + '"}}', "'text' is {'long': 'xxx"),
        ('{"' + "x" * 64_000 + '": 1}', "data.column: 'text' is not a column of"),
        (json.dumps({f"c{i}": i for i in range(9000)}), "it has c0, c1"),
    ],
)
def test_what_is_said_is_short_and_names_the_line(text: str, message: str, tmp_path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert message.replace("{path}", str(path)) in refused(path, tmp_path / "s")


def test_a_first_row_without_the_column_is_what_is_wrong(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1}\n{"text": "x"}\n')
    assert f"data.column: {path}, line 1: 'text' is missing; it must be a string" in refused(path, tmp_path / "s")
    path.write_text('{"id": 1}\n{"prompt": "x", "completion": "y"}\n')
    assert "line 1: 'prompt' is missing" in refused(path, tmp_path / "s")
    path.write_text('{"id": 1}\n{"body": "x"}\n')
    assert f"'text' is not a column of {path}; it has id, body; set data.column" in refused(path, tmp_path / "s")


@pytest.mark.parametrize("kind", ["jsonl", "gz", "json"])
@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_called_by_its_name(kind: str, order: str, tmp_path) -> None:
    path = tmp_path / ("a.jsonl.gz" if kind == "gz" else f"a.{kind}")
    rows = json.dumps(ROWS, indent=1) if kind == "json" else "".join(f"{json.dumps(row)}\n" for row in ROWS)
    content = rows.encode(order)
    path.write_bytes(gzip_of(content) if kind == "gz" else content)
    told = refused(path, tmp_path / "s")
    assert told == f"data.corpus: {path} is UTF-16 text; convert it (iconv -f UTF-16 -t UTF-8)"


@pytest.mark.parametrize(
    "n_texts, n_pairs, odd", [(3, 1, "text"), (1, 3, "prompt"), (2, 2, "text"), (150, 160, "text")]
)
def test_most_of_the_first_rows_decide_which_columns_are_meant(n_texts: int, n_pairs: int, odd: str, tmp_path) -> None:
    """Of a hundred; the pair stands before the texts, where it once decided alone."""
    path = tmp_path / "a.jsonl"
    pairs, texts = ['{"prompt": "x", "completion": "y"}'] * n_pairs, ['{"text": "z"}'] * n_texts
    path.write_text("\n".join([*pairs, *texts] if n_texts < 100 else [*texts, *pairs]))
    line = {"text": 1, "prompt": n_pairs + 1}[odd] if n_texts < 100 else n_texts + 1
    has = "text" if odd == "prompt" else "prompt, completion"
    assert refused(path, tmp_path / "s") == (
        f"data.column: {path}, line {line}: {odd!r} is missing; it must be a string in every row (this one has {has}): "
        "put it there, leave the row out, or set data.column"
    )


def test_upper_case_and_empty_files_among_many(tmp_path) -> None:
    (tmp_path / "rows").mkdir()
    for i in range(300):
        (tmp_path / "rows" / f"{i:03}.JSONL").write_text("" if i % 2 else f'{{"text": "{i}"}}')
    documents = load(tmp_path / "rows", tmp_path / "s")
    assert [document.text for document in documents] == [str(i) for i in range(0, 300, 2)]
    assert "it has text; set" in refused(tmp_path / "rows", tmp_path / "u", column="words")
    (tmp_path / "rows" / "299.JSONL").write_text("5")
    assert "299.JSONL, line 1: a int" in refused(tmp_path / "rows", tmp_path / "t")


def write_parquet(path: Path, names: list[str], *columns) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(c) for c in columns], names=names), path)
    return path


def test_every_layout_of_strings_is_text(tmp_path) -> None:
    import pyarrow

    strings = pyarrow.array(["one", "é", "one"])
    layouts = {
        "string": strings,
        "large": strings.cast(pyarrow.large_string()),
        "view": strings.cast(pyarrow.string_view()),
        "categories": strings.dictionary_encode(),
    }
    path = write_parquet(tmp_path / "a.parquet", list(layouts), *layouts.values())
    for name in layouts:
        assert load(path, tmp_path / name, column=name) == [Document("one"), Document("é"), Document("one")]


def test_what_is_no_text_in_parquet(tmp_path) -> None:
    columns = [["a"]], [{"text": "a"}], [b"a"], [1], ["a"]
    path = write_parquet(tmp_path / "a.parquet", ["list", "struct", "bytes", "text", "text"], *columns)
    for name, held in (("list", "list<"), ("struct", "struct<text: string>"), ("bytes", "binary")):
        assert f"'{name}' of {path} holds {held}" in refused(path, tmp_path / "s", column=name)
    assert "has several columns called 'text'; rename" in refused(path, tmp_path / "s")
    write_parquet(tmp_path / "b.parquet", ["text"], ["x"])
    write_parquet(tmp_path / "c.parquet", ["body"], ["x"])
    assert "'text' is not a column of" in refused(tmp_path / "[bc].parquet", tmp_path / "s")
    write_parquet(tmp_path / "d.parquet", ["text"], ["x", None])
    assert "'text' is null in row 2 of" in refused(tmp_path / "[bd].parquet", tmp_path / "t")


def test_a_damaged_parquet_is_one_line(tmp_path, capfd) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["text"], [f"text {i}" for i in range(9000)])
    content = path.read_bytes()
    for damaged in (content[:-20], content[:100] + bytes(9000) + content[9100:], b"PAR1", gzip_of(content)):
        path.write_bytes(damaged)
        assert f"data.corpus: {path} could not be read as parquet (" in refused(path, tmp_path / "s")
    assert "packed with gzip; unpack it" in refused(path, tmp_path / "s")
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def gzip_of(content: bytes) -> bytes:
    import gzip

    return gzip.compress(content)


def test_a_folder_of_save_to_disk_is_read(tmp_path) -> None:
    import datasets

    datasets.disable_progress_bars()
    train, test = (datasets.Dataset.from_dict({"text": [f"{name} {i}" for i in range(3)]}) for name in ("a", "b"))
    train.save_to_disk(str(tmp_path / "one"))
    assert load(tmp_path / "one", tmp_path / "s") == [Document(f"a {i}") for i in range(3)]
    datasets.DatasetDict(train=train, test=test).save_to_disk(str(tmp_path / "two"))
    assert load(tmp_path / "two", tmp_path / "s")[0] == Document("a 0")
    assert load(tmp_path / "two", tmp_path / "s", split="test")[0] == Document("b 0")
    assert load(tmp_path / "two" / "test", tmp_path / "s")[0] == Document("b 0")
    assert locate(str(tmp_path / "one")).identity() != locate(str(tmp_path / "two"), split="test").identity()
    assert "data.split: 'dev' is no split of" in refused(tmp_path / "two", tmp_path / "s", split="dev")
    assert "'body' is not a column of" in refused(tmp_path / "one", tmp_path / "s", column="body")
    (arrow,) = (tmp_path / "one").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:50])
    assert "could not be read as a folder of datasets.save_to_disk" in refused(tmp_path / "one", tmp_path / "s")
