"""Encode documents: a completion as the continuation that it is, and whether the tokens give the text back.

A completion has the tokens that continue those of its prompt. By themselves they are as good, and as they come when a
prompt is continued, if that spells the same text: so for bytes, characters and byte-level BPE. Tokenizers that begin
every text with a blank, or join what they may, take both together: the completion has what is behind the tokens of the
prompt alone. Where a token holds the end of the prompt and the start of the completion, it is the first target, and so
is every token before it in which the two ways differ: nothing of the completion is ever given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hybrid.data.corpora.source import Document
from hybrid.data.tokenizers import Tokenizer
from hybrid.options import shown

CHECKED_CHARACTERS = 2**21  # of a split, to see whether the text comes back
CHECKED_OF_ONE = 2**18  # of one document


class Encoded(NamedTuple):
    """A document as tokens.

    Attributes:
        ids: without the end of text that closes it, which has the place len(ids).
        targets: the spans (begin, end) that are learned, in order; all else is given.
        text: what the ids should give back.
        target_bytes: how much of it, in UTF-8, is learned.
        where: begins the message of an error.
    """

    ids: np.ndarray
    targets: tuple[tuple[int, int], ...]
    text: str
    target_bytes: int
    where: str = "data.turns: a document"


def encode_documents(documents: Sequence[Document], tokenizer: Tokenizer) -> list[Encoded]:
    """Return the ids of each document, those of its prompt first."""
    texts = tokenizer.encode_batch([document.text for document in documents])
    joined = [(ids, 0) for ids in texts]
    if any(document.prompt for document in documents):
        prompts = tokenizer.encode_batch([document.prompt or "" for document in documents])
        together = tokenizer.encode_batch([_whole(document) for document in documents])
        joined = [continued(*ids, tokenizer) for ids in zip(prompts, texts, together, strict=True)]
    return [
        Encoded(ids, ((n_prompt, len(ids) + 1),), _whole(document), len(document.text.encode()))
        for document, (ids, n_prompt) in zip(documents, joined, strict=True)
    ]


def continued(
    prompt: np.ndarray, text: np.ndarray, together: np.ndarray, tokenizer: Tokenizer
) -> tuple[np.ndarray, int]:
    """Join the ids of a prompt and of what continues it; `together` are those of both as one text.

    Returns:
        the ids, and how many of them are the prompt's.
    """
    apart = np.concatenate([prompt, text])
    if np.array_equal(apart, together) or tokenizer.decode(apart.tolist()) == tokenizer.decode(together.tolist()):
        return apart, len(prompt)
    shorter = min(len(prompt), len(together))
    differ = np.flatnonzero(prompt[:shorter] != together[:shorter])
    return together, int(differ[0]) if len(differ) else shorter


class RoundTrip:
    """Counts the documents of a split that `decode` does not turn back into their text; of a large one, the first."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._characters = 0
        self.checked = self.lost = 0
        self.example: str | None = None

    def check(self, encoded: Encoded) -> None:
        """Count one more document, unless enough of the text was checked."""
        if self._characters >= CHECKED_CHARACTERS:
            return
        text, ids = encoded.text, encoded.ids
        if len(text) > CHECKED_OF_ONE:
            text = text[:CHECKED_OF_ONE]
            ids = np.array(self._tokenizer.encode(text))
        back = self._tokenizer.decode(ids.tolist())
        self._characters += len(text)
        self.checked += 1
        if back != text:
            self.lost += 1
            self.example = self.example or _difference(text, back)

    def entry(self) -> dict[str, Any]:
        """Return what meta.json says."""
        return {"checked": self.checked, "lost": self.lost, "example": self.example}


def _difference(text: str, back: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
    start = max(at - 10, 0)
    return f"{shown(text[start : at + 20])} as {shown(back[start : at + 20])}"


def _whole(document: Document) -> str:
    return (document.prompt or "") + document.text
