"""Tokens that are bytes, or characters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from hybrid.data.tokenizers.base import LONG, Tokenizer


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes: ids 0 to 255, end of text 256."""

    kind = "byte"
    vocab_size = 257
    end_of_text = 256

    @classmethod
    def train(cls, texts: Iterable[str] = (), vocab_size: int = 0) -> Self:
        return cls()

    def state(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_state(cls, state: dict[str, Any], folder: Path) -> Self:
        return cls()

    def _encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def _encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode("utf-8"), dtype=np.uint8) for text in texts]

    def _decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")

    def _piece(self, token: int) -> bytes:
        return bytes([token])


class CharTokenizer(Tokenizer):
    """The characters of the corpus, sorted by code point; end of text comes after the last."""

    kind = "char"
    needs_all_text = True

    def __init__(self, characters: Iterable[str]) -> None:
        self.characters = "".join(sorted(set(characters)))
        self.vocab_size = len(self.characters) + 1
        self.end_of_text = len(self.characters)
        self._ids = {character: i for i, character in enumerate(self.characters)}

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 0) -> Self:
        characters: set[str] = set()
        for text in texts:
            characters.update(text)
        return cls(characters)

    def state(self) -> dict[str, Any]:
        return {"characters": self.characters}

    @classmethod
    def from_state(cls, state: dict[str, Any], folder: Path) -> Self:
        return cls(state["characters"])

    def _encode(self, text: str) -> list[int]:
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            character = error.args[0]
            raise ValueError(
                f"character {character!r} (U+{ord(character):04X}) at position {text.index(character)} is not among "
                f"the {len(self.characters)} characters of this tokenizer; leave it out, or use data.tokenizer=byte"
            ) from None

    def _encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        known = np.frombuffer(self.characters.encode("utf-32-le"), dtype="<u4")  # sorted
        return [self._encode_array(text, known) for text in texts]

    def _encode_array(self, text: str, known: np.ndarray) -> np.ndarray:
        ids = np.empty(len(text), np.uint32)
        for start in range(0, len(text), LONG):
            points = np.frombuffer(text[start : start + LONG].encode("utf-32-le"), dtype="<u4")
            found = np.searchsorted(known, points)
            if not len(known) or not (known[found.clip(max=len(known) - 1)] == points).all():
                self._encode(text)  # raises: it names the first that is not there
            ids[start : start + LONG] = found
        return ids

    def _decode(self, ids: list[int]) -> str:
        return "".join([self.characters[i] for i in ids])
