"""Tables of strings on disk, that `datasets` maps into memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

BATCH_ROWS, BATCH_CHARACTERS = 1000, 2**24  # of the rows that are written at once


def batches(texts: Iterable[tuple[str, ...]], columns: Sequence[str]) -> Iterator[Any]:
    """Yield rows of strings as record batches."""
    import pyarrow

    schema, rows, characters = schema_of(columns), [], 0
    for row in texts:
        rows.append(row)
        characters += sum(map(len, row))
        if len(rows) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield _batch(pyarrow, rows, schema)
            rows, characters = [], 0
    if rows:
        yield _batch(pyarrow, rows, schema)


def _batch(pyarrow: Any, rows: list[tuple[str, ...]], schema: Any) -> Any:
    arrays = [pyarrow.array(values, pyarrow.large_string()) for values in zip(*rows, strict=True)]
    return pyarrow.RecordBatch.from_arrays(arrays, schema=schema)


def write_table(path: Path, record_batches: Iterable[Any], columns: Sequence[str]) -> None:
    """Write an arrow stream, as `datasets.Dataset.from_file` maps it into memory."""
    import pyarrow

    path.parent.mkdir(parents=True, exist_ok=True)
    with pyarrow.ipc.new_stream(str(path), schema_of(columns)) as writer:
        for batch in record_batches:
            writer.write_batch(batch)


def schema_of(columns: Sequence[str]) -> Any:
    """Return the schema of columns of strings."""
    import pyarrow

    return pyarrow.schema([(name, pyarrow.large_string()) for name in columns])
