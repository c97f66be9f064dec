"""Documents, and the local files they come from: text, jsonl and parquet, a folder of `datasets.save_to_disk`.

A text file is one document, whole. A row of the others is one document. reading.py says how text is read.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.data.corpora import arrow_tables, conversations, tables
from hybrid.data.corpora.reading import read_text
from hybrid.data.corpora.source import Document, Documents, InMemory
from hybrid.options import bare, shown
from hybrid.storage.hashing import digest

HASHED_BYTES = 64 * 2**20  # files up to this much in all are known by content, larger ones by path, size and time


@dataclass(frozen=True)
class TextFiles:
    """Text files: each is one document, whole; a lone file is cut into sections, or nothing could validate it."""

    paths: tuple[Path, ...]

    def identity(self) -> str:
        return identity(self.paths, "text")

    def load(self, folder: Path) -> Documents:
        if len(self.paths) == 1:
            return InMemory([Document(section) for section in sections(read_text(self.paths[0]))])
        return TextDocuments(self.paths)


@dataclass(frozen=True)
class TextDocuments:
    paths: tuple[Path, ...]
    has_prompts: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: Sequence[int]) -> list[Document]:
        return [Document(read_text(self.paths[i])) for i in indices]


@dataclass(frozen=True)
class TableFiles:
    """jsonl or parquet files: a row is a document, in `column`; if it isn't there in `prompt` and `completion`, or in
    `messages`. A column that holds lists of messages holds conversations."""

    paths: tuple[Path, ...]
    format: str
    column: str

    def identity(self) -> str:
        return identity(self.paths, self.format, self.column)

    def load(self, folder: Path) -> Documents:
        # Written here rather than by the loaders of `datasets`, which take text that looks like a date for a time stamp
        # and say of a damaged file what they think of it in several lines.
        columns, batches = self._jsonl() if self.format == "jsonl" else self._parquet()
        arrow_tables.write_table(folder / "rows.arrow", batches, columns)
        table = quiet_datasets().Dataset.from_file(str(folder / "rows.arrow"))
        if columns == conversations.COLUMNS:
            return conversations.WrittenConversations(table)
        return TableDocuments(table, self.column, tables.of_files(self.paths))

    def _jsonl(self) -> tuple[Sequence[str], Iterator[Any]]:
        columns = tables.jsonl_columns(self.paths, self.column)
        if len(columns) == 1 and conversations.in_jsonl(self.paths, columns[0]):
            rows = conversations.of_jsonl(self.paths, columns[0])
            return conversations.COLUMNS, arrow_tables.batches(rows, conversations.COLUMNS)
        conversations.refuse_text(columns, self.column, tables.of_files(self.paths))
        return columns, arrow_tables.batches(tables.jsonl_texts(self.paths, columns), columns)

    def _parquet(self) -> tuple[Sequence[str], Iterator[Any]]:
        columns = tables.parquet_columns(self.paths, self.column)
        if len(columns) == 1 and conversations.is_type(tables.parquet_type(self.paths[0], columns[0])):
            rows = conversations.of_parquet(self.paths, columns[0])
            return conversations.COLUMNS, arrow_tables.batches(rows, conversations.COLUMNS)
        conversations.refuse_text(columns, self.column, tables.of_files(self.paths))
        return columns, tables.parquet_texts(self.paths, columns)


@dataclass(frozen=True)
class SavedTable:
    """A folder that `datasets.save_to_disk` wrote."""

    folder: Path
    column: str

    def identity(self) -> str:
        return identity(tuple(sorted(p for p in self.folder.iterdir() if p.is_file())), "saved", self.column)

    def load(self, folder: Path) -> Documents:
        try:
            table = quiet_datasets().load_from_disk(str(self.folder))
        except Exception as error:  # whatever pyarrow or datasets makes of a damaged folder
            raise ValueError(
                f"data.corpus: {self.folder} could not be read as a folder of datasets.save_to_disk ({reason(error)}); "
                "save it again"
            ) from None
        return documents_of(table, self.column, str(self.folder))


def saved_table(corpus: str, split: str, column: str) -> SavedTable | None:
    """Return the data set that a folder holds, if it is one of `datasets.save_to_disk`; of several splits, `split`.

    Raises:
        ValueError: there is no such split.
    """
    folder = Path(os.path.expanduser(corpus))
    if os.path.isfile(folder / "dataset_dict.json"):
        splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
        if split not in splits:
            raise ValueError(f"data.split: {shown(split)} is no split of {shown(corpus)}; it has {', '.join(splits)}")
        folder = folder / split
    is_saved = all(os.path.isfile(folder / name) for name in ("state.json", "dataset_info.json"))
    return SavedTable(folder, column) if is_saved else None


def documents_of(table: Any, column: str, where: str) -> Documents:
    """Return the rows of a `datasets.Dataset` as documents: texts, or conversations. Raises ValueError for neither."""
    columns = tables.text_columns(table.column_names, column, where)
    if len(columns) == 1 and conversations.is_type(table.features.arrow_schema.field(columns[0]).type):
        return conversations.TableConversations(table, columns[0], where)
    conversations.refuse_text(columns, column, where)
    return TableDocuments(table, column, where)


class TableDocuments:
    """Rows of a `datasets.Dataset` (on disk, memory-mapped) as documents."""

    def __init__(self, table: Any, column: str, where: str) -> None:
        self._columns = tables.text_columns(table.column_names, column, where)
        for name in self._columns:
            tables.refuse_unless_text(name, table.features.arrow_schema.field(name).type, where)
        self._table = table.select_columns(list(self._columns)).with_format(None)
        self._where = where
        self.has_prompts = len(self._columns) == 2

    def __len__(self) -> int:
        return len(self._table)

    def read(self, indices: Sequence[int]) -> list[Document]:
        try:
            table = self._table[list(indices)]
        except UnicodeDecodeError:
            raise ValueError(
                f"data.column: {self._columns[0]!r} of {self._where} holds strings that are not UTF-8; write it again"
            ) from None
        columns = [table[name] for name in self._columns]
        for name, values in zip(self._columns, columns, strict=True):
            if None in values:
                row = indices[values.index(None)]
                raise ValueError(
                    f"data.column: {name!r} is null in row {row} of {self._where}; fill it or drop the row"
                )
        if self.has_prompts:
            return [Document(text, prompt) for prompt, text in zip(*columns, strict=True)]
        return [Document(text) for text in columns[0]]


def sections(text: str, smallest: int = 1024, most: int = 256) -> list[str]:
    """Cut a text into pieces that concatenate to it, at blank lines, else line ends, else spaces.

    A piece has at least `smallest` characters (unless the text is shorter), and there are at most `most`.
    """
    size = max(smallest, -(-len(text) // most))
    pieces, start = [], 0
    while len(text) - start >= 2 * size:  # so that the last piece is no shorter than the others
        window = text[start + size - 1 : start + 2 * size - 1]
        marks = [mark for mark in ("\n\n", "\r\n\r\n", "\n", " ") if mark in window]
        cut = window.index(marks[0]) + len(marks[0]) if marks else 1
        if len(text) - (start + size - 1 + cut) < size:
            break
        pieces.append(text[start : start + size - 1 + cut])
        start += size - 1 + cut
    return [*pieces, text[start:]]


def identity(paths: Sequence[Path], *settings: str) -> str:
    """Return a hash of the content of files, or if there is much of it of their paths, sizes and times."""
    try:
        stats = [path.stat() for path in paths]
        if sum(s.st_size for s in stats) <= HASHED_BYTES:
            return digest(*settings, *(path.read_bytes() for path in paths))
    except OSError as error:
        raise ValueError(f"data.corpus: {error.filename}: {error.strerror}; check the file") from None
    known_by = [f"{p.resolve()} {s.st_size} {s.st_mtime_ns}" for p, s in zip(paths, stats, strict=True)]
    return digest(*settings, *known_by)


def reason(error: BaseException) -> str:
    """Return the innermost cause in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return bare(f"{type(error).__name__}: {error}", 300)


def quiet_datasets() -> Any:
    """Return the `datasets` library; its progress bars only where somebody watches."""
    import datasets

    datasets.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets
