"""Rows of jsonl and parquet files: one column of text, or `prompt` and `completion`.

A .json file may also hold one array of objects, over as many lines as it likes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from hybrid.data.corpora.arrow_tables import BATCH_ROWS, schema_of
from hybrid.data.corpora.reading import SNIFFED, file_start, not_utf8, opened, what_is
from hybrid.data.messages import OFTEN_CALLED, renaming
from hybrid.options import bare, shown

PAIR = ("prompt", "completion")
MESSAGES = "messages"
LOOKED_AT = 100  # rows that decide between the two
_BLANK = re.compile(r"\s*")

Row = tuple[str, int, dict[str, Any]]  # file, line number from 1, object


def text_columns(names: Iterable[str], column: str, where: str) -> tuple[str, ...]:
    """Return the columns that count: `column`, else prompt and completion, else messages.

    Args:
        names: of the columns, perhaps with an example of what each holds.

    Raises:
        ValueError: there is none of them.
    """
    examples, names = names if isinstance(names, Mapping) else {}, list(names)
    chosen = next((found for found in _candidates(column) if set(found) <= set(names)), None)
    if chosen is None:
        way_out = "set data.column to one of them (or give it columns prompt and completion, or messages)"
        talk = next((name for name in OFTEN_CALLED[MESSAGES] if name in names), None)
        if talk is not None and isinstance(examples.get(talk, []), list):
            way_out = renaming([talk], examples.get(talk))
        raise ValueError(
            f"data.column: {shown(column)} is not a column of {where}; it has {shown_names(names)}; {way_out}"
        )
    twice = [name for name in chosen if names.count(name) > 1]
    if twice:
        raise ValueError(f"data.column: {where} has several columns called {shown(twice[0])}; rename all but one")
    return chosen


def _candidates(column: str) -> tuple[tuple[str, ...], ...]:
    return (column,), PAIR, (MESSAGES,)


def shown_names(names: Sequence[str]) -> str:
    """Join names of columns for a message."""
    text = ", ".join(bare(name) for name in names[:20])
    return text + (f" and {len(names) - 20:,} more" if len(names) > 20 else "")


def of_files(paths: Sequence[Path]) -> str:
    """Name files in a message."""
    return f"{paths[0]}{f' and {len(paths) - 1:,} more' if len(paths) > 1 else ''}"


# ---------------------------------------------------------------------------------------------------------------------
# jsonl


def jsonl_columns(paths: Sequence[Path], column: str) -> tuple[str, ...]:
    """Choose `text_columns` by what most of the first rows have that have either.

    Each of the others is an error of its own, which names its line.
    """
    seen: dict[str, Any] = {}
    where = ""
    votes: list[tuple[str, ...]] = []
    for path, _, row in json_rows(paths):
        where = where or path
        if any(set(found) <= row.keys() for found in _candidates(column)):
            votes.append(text_columns(row, column, path))
            if len(votes) == LOOKED_AT:
                break
        seen |= row
    if votes:
        return max(_candidates(column), key=votes.count)
    if not where:
        raise ValueError(f"data.corpus: {of_files(paths)}: no documents; every file is empty")
    return text_columns(seen, column, where)


def jsonl_texts(paths: Sequence[Path], columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the text of each row, a string per column. Raises ValueError, naming file and line, for what is no text."""
    for path, number, row in json_rows(paths):
        for name in columns:
            value = row.get(name)
            if not isinstance(value, str):
                found = f"is {shown(value)}" if name in row else "is missing"
                raise ValueError(
                    f"data.column: {path}, line {number}: {name!r} {found}; it must be a string in every row (this one "
                    f"has {shown_names(list(row)) or 'nothing'}): put it there, leave the row out, or set data.column"
                )
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError(
                    f"data.column: {path}, line {number}: {name!r} has a lone surrogate (\\ud800 to \\udfff), which "
                    "UTF-8 can't hold; remove it"
                ) from None
        yield tuple(row[name] for name in columns)


def json_rows(paths: Sequence[Path]) -> Iterator[Row]:
    """Yield every object, of files with one a line (blank lines left out) and of files that hold one array."""
    for path in paths:
        with opened(path) as file:
            yield from _rows_of(path, file)


def _rows_of(path: Path, file: IO[bytes]) -> Iterator[Row]:
    offset, is_first = 0, True
    for number, line in enumerate(file, 1):
        text = _utf8(path, line, offset)
        offset += len(line)
        if not text.strip():
            continue
        if is_first and text.lstrip().startswith("["):
            yield from _array(path, number, text + _utf8(path, file.read(), offset))
            return
        hint = "; in jsonl an object is one line: jq -c . makes it so" if is_first else ""
        is_first = False
        yield str(path), number, _object(path, number, text, hint)


def _object(path: Path, number: int, text: str, hint: str) -> dict[str, Any]:
    where = f"data.corpus: {path}, line {number}"
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        _refuse_no_text(path)
        raise ValueError(f"{where}: not JSON ({error.msg}, column {error.colno}); fix this line{hint}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {_too_much(error)}; leave it out") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a {type(row).__name__}; every line must be one JSON object")
    return row


def _array(path: Path, number: int, text: str) -> Iterator[Row]:
    """Yield the objects of an array, one after the other: `text` begins at line `number` of the file."""
    decoder, where = json.JSONDecoder(), f"data.corpus: {path}"
    position = text.index("[") + 1
    counted = 0  # of the text, for the line number
    is_first = True
    while True:
        position = _skip(text, position)
        if text.startswith("]", position) and is_first:
            break
        number, counted = number + text.count("\n", counted, position), position
        try:
            row, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            _refuse_no_text(path)
            line = number + text.count("\n", counted, error.pos)
            raise ValueError(f"{where}, line {line}: not JSON ({error.msg}), in an array of rows; fix it") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}, line {number}: {_too_much(error)}; leave it out") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}, line {number}: a {type(row).__name__}; every row must be one JSON object")
        yield str(path), number, row
        is_first = False
        position = _skip(text, position)
        if not text.startswith(",", position):
            break
        position += 1
    is_closed = text.startswith("]", position)
    position = _skip(text, position + is_closed)
    if not is_closed or position < len(text):
        number += text.count("\n", counted, position)
        raise ValueError(f"{where}, line {number}: not JSON (an array of rows, and then something else); fix it")


def _refuse_no_text(path: Path) -> None:
    """Raise ValueError for a file that is no JSON because it is no UTF-8, though its bytes may be: they say UTF-16."""
    with opened(path) as file:
        what = what_is(file.read(SNIFFED))
    if what is not None:
        raise ValueError(f"data.corpus: {path} is {what}")


def _skip(text: str, position: int) -> int:
    found = _BLANK.match(text, position)
    return position if found is None else found.end()


def _too_much(error: BaseException) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else shown(str(error))


def _utf8(path: Path, data: bytes, offset: int) -> str:
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise not_utf8(path, offset + error.start, data if offset == 0 else b"") from None


# ---------------------------------------------------------------------------------------------------------------------
# parquet


def parquet_columns(paths: Sequence[Path], column: str) -> tuple[str, ...]:
    """Choose `text_columns` of the first file."""
    return text_columns(_parquet(paths[0]).schema_arrow.names, column, str(paths[0]))


def parquet_texts(paths: Sequence[Path], columns: Sequence[str]) -> Iterator[Any]:
    """Yield record batches of `columns` as large strings. Raises ValueError for what can't be read."""
    import pyarrow

    schema = schema_of(columns)
    for path in paths:
        file = _parquet(path)
        if not set(columns) <= set(file.schema_arrow.names):
            text_columns(file.schema_arrow.names, columns[0], str(path))
            raise ValueError(f"data.column: {path} has other columns than {paths[0]}; name files that are alike")
        for name in columns:
            refuse_unless_text(name, file.schema_arrow.field(name).type, str(path))
        for batch in _batches_of(path, file, columns):
            try:
                arrays = [batch.column(name).cast(pyarrow.large_string()) for name in columns]
            except pyarrow.ArrowException as error:
                raise _unreadable(path, error) from None
            yield pyarrow.RecordBatch.from_arrays(arrays, schema=schema)


def parquet_type(path: Path, column: str) -> Any:
    """Return the arrow type of a column that is there."""
    return _parquet(path).schema_arrow.field(column).type


def parquet_lists(path: Path, column: str) -> Iterator[list[Any]]:
    """Yield the values of a column that is there, some rows at a time."""
    for batch in _batches_of(path, _parquet(path), [column]):
        yield batch.column(column).to_pylist()


def _batches_of(path: Path, file: Any, columns: Sequence[str]) -> Iterator[Any]:
    import pyarrow

    try:
        yield from file.iter_batches(BATCH_ROWS, columns=list(columns))
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from None


def refuse_unless_text(name: str, type: Any, where: str) -> None:
    """Raise ValueError unless an arrow type holds strings, whatever their layout (a dictionary of them, too)."""
    from pyarrow import types

    value = type.value_type if types.is_dictionary(type) else type
    if not (types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)):
        raise ValueError(f"data.column: {name!r} of {where} holds {bare(type)}, not text; name a column of strings")


def _parquet(path: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ValueError:
    if isinstance(error, OSError) and error.strerror:
        return ValueError(f"data.corpus: {path}: {error.strerror}; check the file")
    start = file_start(path)
    what = None if start.startswith(b"PAR1") else what_is(start)
    reason = what or bare(error, 200)
    return ValueError(f"data.corpus: {path} could not be read as parquet ({reason}); check the files, or data.format")
