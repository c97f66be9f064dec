"""Documents, and the local files they come from: text, jsonl and parquet.

A text file is one document, whole. A row of a jsonl or parquet file is one document.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple, Protocol

SUFFIXES = {
    "text": (".txt", ".text", ".md", ".rst"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "parquet": (".parquet", ".pq"),
}
FORMATS = ("auto", *SUFFIXES)
HASHED_BYTES = 64 * 2**20  # files up to this much in all are known by content, larger ones by path, size and time


class Document(NamedTuple):
    """What is learned as one piece, closed by an end-of-text token. Only `text`, not `prompt`, is a target.

    Documents of the same `group` fall into the same split; without one, only equal documents are sure to.
    """

    text: str
    prompt: str | None = None
    group: str | None = None


class Documents(Protocol):
    """Documents by index; reading many at once is what is fast."""

    @property
    def has_prompts(self) -> bool: ...
    def __len__(self) -> int: ...
    def read(self, indices: Sequence[int]) -> list[Document]: ...


@dataclass(frozen=True)
class InMemory:
    """Documents of a list."""

    documents: Sequence[Document]

    @property
    def has_prompts(self) -> bool:
        return any(document.prompt is not None for document in self.documents)

    def __len__(self) -> int:
        return len(self.documents)

    def read(self, indices: Sequence[int]) -> list[Document]:
        return [self.documents[i] for i in indices]


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
    """jsonl or parquet files: a row is a document, in `column`, or in `prompt` and `completion` if it isn't there."""

    paths: tuple[Path, ...]
    format: str
    column: str

    def identity(self) -> str:
        return identity(self.paths, self.format, self.column)

    def load(self, folder: Path) -> Documents:
        datasets = quiet_datasets()
        paths = [str(path) for path in self.paths]
        if self.format == "jsonl":
            columns, rows = _open_jsonl(self.paths, self.column)
            features = datasets.Features(dict.fromkeys(columns, datasets.Value("large_string")))
            # Read here rather than by the `json` loader, which takes text that looks like a date for a time stamp.
            try:
                table = datasets.Dataset.from_generator(
                    rows, features, str(folder), gen_kwargs={"paths": tuple(paths), "columns": tuple(columns)}
                )
            except datasets.exceptions.DatasetGenerationError as error:
                raise error.__cause__ or error from None
        else:
            try:
                table = datasets.load_dataset("parquet", data_files=paths, split="train", cache_dir=str(folder))
            except Exception as error:  # whatever pyarrow or datasets makes of a damaged file
                raise ValueError(
                    f"data.corpus: {', '.join(paths)} could not be read as parquet ({reason(error)}); "
                    "check the files, or set data.format"
                ) from None
        return TableDocuments(table, self.column, ", ".join(paths))


class TableDocuments:
    """Rows of a `datasets.Dataset` (on disk, memory-mapped) as documents."""

    def __init__(self, table: Any, column: str, where: str) -> None:
        self._columns = _text_columns(table.column_names, column, where)
        for name in self._columns:
            dtype = getattr(table.features[name], "dtype", table.features[name])
            if dtype not in ("string", "large_string"):
                raise ValueError(f"data.column: {name!r} of {where} holds {dtype}, not text; name a column of strings")
        self._table = table.select_columns(list(self._columns)).with_format(None)
        self._where = where
        self.has_prompts = len(self._columns) == 2

    def __len__(self) -> int:
        return len(self._table)

    def read(self, indices: Sequence[int]) -> list[Document]:
        table = self._table[list(indices)]
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


def read_text(path: Path) -> str:
    """A UTF-8 file, line ends kept. Raises ValueError naming file and byte offset if it is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error.start) from None


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


def _open_jsonl(paths: Sequence[Path], column: str) -> tuple[list[str], Any]:
    """The columns that count, judged by the first row, and the generator of rows."""
    first = next(_json_rows(paths), None)
    if first is None:
        raise ValueError(f"data.corpus: {', '.join(map(str, paths))}: no documents; every file is empty")
    return list(_text_columns(list(first[2]), column, str(first[0]))), _text_rows


def _json_rows(paths: Sequence[Path | str]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(file, line number from 1, object) of every line that is not blank."""
    for path in paths:
        offset = 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                where = f"data.corpus: {path}, line {number}"
                try:
                    row = json.loads(line.decode("utf-8").removeprefix("\ufeff")) if line.strip() else None
                except UnicodeDecodeError as error:
                    raise _not_utf8(path, offset + error.start) from None
                except json.JSONDecodeError as error:
                    raise ValueError(f"{where}: not JSON ({error.msg}, column {error.colno}); fix this line") from None
                if row is not None and not isinstance(row, dict):
                    raise ValueError(f"{where}: a {type(row).__name__}; every line must be one JSON object")
                if row is not None:
                    yield str(path), number, row
                offset += len(line)


def _text_rows(paths: Sequence[str], columns: Sequence[str]) -> Iterator[dict[str, str]]:
    for path, number, row in _json_rows(paths):
        for name in columns:
            value = row.get(name)
            if not isinstance(value, str):
                found = f"is {value!r}" if name in row else "is missing"
                raise ValueError(f"data.column: {path}, line {number}: {name!r} {found}; it must be a string")
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError(
                    f"data.column: {path}, line {number}: {name!r} has a lone surrogate (\\ud800 to \\udfff), which "
                    "UTF-8 can't hold; remove it"
                ) from None
        yield {name: row[name] for name in columns}


def _text_columns(names: Sequence[str], column: str, where: str) -> tuple[str, ...]:
    if column in names:
        return (column,)
    if "prompt" in names and "completion" in names:
        return ("prompt", "completion")
    raise ValueError(
        f"data.column: {column!r} is not a column of {where}; it has {', '.join(names)}; set data.column to one of "
        "them (or give it columns prompt and completion)"
    )


def find_files(corpus: str, format: str = "auto") -> tuple[Path, ...]:
    """Files of a path, glob or folder (searched through, hidden names left out), sorted; () if there is no such thing.

    In a folder only files whose suffix belongs to `format` count (any known suffix for `auto`).
    """
    path = Path(corpus).expanduser()
    if path.is_file():
        return (path,)
    if path.is_dir():
        suffixes = sum(SUFFIXES.values(), ()) if format == "auto" else SUFFIXES[format]
        inside = [p for p in path.rglob("*") if not any(s.startswith(".") for s in p.relative_to(path).parts)]
        files = sorted(p for p in inside if p.suffix.lower() in suffixes and p.is_file())
        if not files:
            raise ValueError(
                f"data.corpus: no {', '.join(suffixes)} files in folder {corpus!r}; name the files with a glob and set "
                f"data.format (one of {', '.join(FORMATS)})"
            )
        return tuple(files)
    return tuple(sorted(p for p in map(Path, glob(str(path), recursive=True)) if p.is_file()))


def format_of(files: Sequence[Path], format: str, corpus: str) -> str:
    if format != "auto":
        return format
    by_suffix = {suffix: name for name, suffixes in SUFFIXES.items() for suffix in suffixes}
    found = sorted({by_suffix.get(path.suffix.lower(), "text") for path in files})
    if len(found) > 1:
        raise ValueError(
            f"data.format: {corpus!r} holds files of several formats ({', '.join(found)}); set data.format to one"
        )
    return found[0]


def digest(*parts: str | bytes) -> str:
    """A sha256 of parts that can't be confused with another way of cutting them."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()


def identity(paths: Sequence[Path], *settings: str) -> str:
    try:
        stats = [path.stat() for path in paths]
        if sum(s.st_size for s in stats) <= HASHED_BYTES:
            return digest(*settings, *(path.read_bytes() for path in paths))
    except OSError as error:
        raise ValueError(f"data.corpus: {error.filename}: {error.strerror}; check the file") from None
    known_by = [f"{p.resolve()} {s.st_size} {s.st_mtime_ns}" for p, s in zip(paths, stats, strict=True)]
    return digest(*settings, *known_by)


def _not_utf8(path: Path | str, offset: int) -> ValueError:
    return ValueError(
        f"data.corpus: {path} is not UTF-8 (byte {offset}); convert it (iconv -f LATIN1 -t UTF-8), or set data.format"
    )


def reason(error: BaseException) -> str:
    """The innermost cause in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def quiet_datasets() -> Any:
    """The `datasets` library; its progress bars only where somebody watches."""
    import datasets

    datasets.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets
