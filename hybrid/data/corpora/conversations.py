"""Conversations in rows of jsonl and parquet files and of tables of `datasets`: lists of messages in one column."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from hybrid.data.corpora import tables
from hybrid.data.corpora.source import Document

COLUMNS = ("messages", "where")
"""Of the table on disk that files are written to: JSON, and the place that it comes from."""


def in_jsonl(paths: Sequence[Path], column: str) -> bool:
    """Return whether the first row that has `column` holds a conversation in it."""
    value = next((row[column] for _, _, row in tables.json_rows(paths) if column in row), None)
    return isinstance(value, list) and (column == tables.MESSAGES or any(isinstance(item, dict) for item in value))


def of_jsonl(paths: Sequence[Path], column: str) -> Iterator[tuple[str, str]]:
    """Yield the conversation of each row as JSON, and its place. Raises ValueError, naming it, for what is none."""
    for path, number, row in tables.json_rows(paths):
        where = f"data.column: {path}, line {number}: {column!r}"
        if column not in row:
            raise ValueError(f"{where} is missing; put a list of messages there, leave the row out, or set data.column")
        yield Document.of_messages(row[column], where).text, where


def is_type(type: Any) -> bool:
    """Return whether an arrow type holds lists of objects."""
    from pyarrow import types

    is_list = types.is_list(type) or types.is_large_list(type)
    return is_list and types.is_struct(type.value_type)


def refuse_text(columns: Sequence[str], column: str, where: str) -> None:
    """Raise a ValueError for a column `messages` of something else that was found because `column` is not there."""
    if tuple(columns) == (tables.MESSAGES,) != (column,):
        raise ValueError(
            f"data.column: {column!r} is not a column of {where}, and {tables.MESSAGES!r} holds no lists of messages; "
            "set data.column to the column of text"
        )


def of_parquet(paths: Sequence[Path], column: str) -> Iterator[tuple[str, str]]:
    """Yield as `of_jsonl` what the rows of parquet files hold."""
    for path in paths:
        tables.parquet_columns([path], column)
        if not is_type(tables.parquet_type(path, column)):
            raise ValueError(f"data.column: {column!r} of {path} holds no lists of messages; name files that are alike")
        for number, value in enumerate(chain.from_iterable(tables.parquet_lists(path, column))):
            where = f"data.column: {path}, row {number}: {column!r}"
            yield Document.of_messages(value, where).text, where


@dataclass(frozen=True)
class WrittenConversations:
    """What `of_jsonl` or `of_parquet` has yielded, as a table of `COLUMNS` on disk."""

    table: Any
    has_prompts: bool = True
    has_conversations: bool = True

    def __len__(self) -> int:
        return len(self.table)

    def read(self, indices: Sequence[int]) -> list[Document]:
        rows = self.table[list(indices)]
        pairs = zip(*(rows[name] for name in COLUMNS), strict=True)
        return [Document.of_messages(json.loads(text), where) for text, where in pairs]


@dataclass(frozen=True)
class TableConversations:
    """Rows of a `datasets.Dataset` with lists of messages in `column`."""

    table: Any
    column: str
    where: str
    has_prompts: bool = True
    has_conversations: bool = True

    def __len__(self) -> int:
        return len(self.table)

    def read(self, indices: Sequence[int]) -> list[Document]:
        values = self.table.select_columns([self.column]).with_format(None)[list(indices)][self.column]
        places = [f"data.column: {self.where}, row {i}: {self.column!r}" for i in indices]
        return [Document.of_messages(value, where) for value, where in zip(values, places, strict=True)]
