"""Divide documents into training and validation by the hash of each, so that a corpus that grows keeps its split."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np

from hybrid.data.corpora.source import Document, Documents
from hybrid.options import shown
from hybrid.progress import progress

SPLITS = ("train", "validation")
SHUFFLE_SEED = 0
CHUNK, CHUNK_CHARACTERS = 256, 2**22  # documents in memory at once: so many, or so much text


def chunks(documents: Documents, indices: np.ndarray) -> Iterator[list[tuple[int, Document]]]:
    """Yield documents with their indices, fewer at once where they are long."""
    start, size = 0, 1
    while start < len(indices):
        chosen = indices[start : start + size].tolist()
        chunk = list(zip(chosen, documents.read(chosen), strict=True))
        yield chunk
        start += len(chunk)
        characters = sum(len(document.text) + len(document.prompt or "") for _, document in chunk)
        size = min(2 * size, CHUNK) if 2 * characters < CHUNK_CHARACTERS else max(size // 2, 1)


class Survey(NamedTuple):
    splits: dict[str, np.ndarray]  # indices of the documents of each split, shuffled
    sha256: str


def survey(documents: Documents, corpus: Any, validation_fraction: float) -> Survey:
    """Read all documents once: leave out the empty ones, hash the others, split and shuffle.

    Raises:
        ValueError: there are not two distinct ones with text; `corpus` is for the message.
    """
    kept: list[int] = []
    hashes: list[int] = []
    total = sha256()
    indices = np.arange(len(documents))
    for chunk in progress(chunks(documents, indices), len(documents), "reading documents"):
        for index, document in chunk:
            if not document.text.strip() and not document.prompt:
                continue
            prompt = document.prompt or ""
            try:
                whole = sha256((prompt + document.text).encode()).digest()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"data.corpus: document {index} of {shown(corpus)} can't be written as UTF-8 "
                    f"({error.reason}); remove its lone surrogates"
                ) from None
            # Chosen by the text or group alone: equal ones fall together, and a corpus that grows keeps its split.
            chosen_by = whole if document.group is None else sha256(document.group.encode()).digest()
            hashes.append(int.from_bytes(chosen_by[:8], "little"))
            kept.append(index)
            total.update(whole + len(prompt).to_bytes(8, "little"))
    hashed = np.array(hashes, dtype=np.uint64)
    distinct = len(np.unique(hashed))
    if distinct < 2:
        held = "no documents with text" if not kept else f"only {distinct} distinct document or group"
        raise ValueError(
            f"data.corpus: {shown(corpus)} holds {held}; training and validation need one each: add files, or "
            "rows (jsonl, parquet), one a document"
        )
    is_validation = hashed / 2.0**64 < validation_fraction
    if not is_validation.any():
        is_validation = hashed == hashed.min()
    elif is_validation.all():
        is_validation = hashed != hashed.max()
    shuffle = np.random.default_rng(SHUFFLE_SEED).permutation(len(hashed))
    index, is_validation = np.array(kept)[shuffle], is_validation[shuffle]
    return Survey({"train": index[~is_validation], "validation": index[is_validation]}, total.hexdigest())
