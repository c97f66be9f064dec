"""A tokenizer: text to token ids, and back."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from hybrid.arguments import token_ids
from hybrid.data.tokenizers.chat_template import ChatTemplate
from hybrid.options import shown

KIND_FILE = "tokenizer_kind.json"
LONG = 2**20  # characters of a text that is encoded in pieces
END_OF_TEXT = "<|endoftext|>"


class SpecialToken(NamedTuple):
    """A token that no text has, but a chat template may write. Some take the white space beside them along."""

    id: int
    lstrip: bool = False
    rstrip: bool = False


class Tokenizer(ABC):
    """What every tokenizer does. `decode(encode(text)) == text` for byte, char and our own BPE."""

    kind: ClassVar[str]  # its name in TOKENIZERS
    sized: ClassVar[bool] = False  # whether `data.vocab_size` matters to it
    needs_all_text: ClassVar[bool] = False  # trained on validation text too (an inventory, not statistics)

    vocab_size: int  # ids are 0 .. vocab_size - 1, end of text among them
    end_of_text: int
    chat_template: ChatTemplate | None = None  # lies beside it, and is no part of its fingerprint
    n_padding: int = 0  # ids behind them that a network has rows for, and no text: they decode to nothing

    @classmethod
    @abstractmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Self:
        """Make one for these texts. Raises ValueError for a `vocab_size` it can't have."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return everything that defines it, as JSON values."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: dict[str, Any], folder: Path) -> Self:
        """Return the reverse of `state`; `folder` is where it was saved."""

    @abstractmethod
    def _encode(self, text: str) -> list[int]: ...

    @abstractmethod
    def _decode(self, ids: list[int]) -> str: ...

    @property
    def name(self) -> str:
        return self.kind

    @property
    def fingerprint(self) -> str:
        """Return a hash (16 hex digits) of all that decides what `encode` returns."""
        text = json.dumps([self.kind, self.state()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; never `end_of_text`, whatever the text spells.

        Raises:
            ValueError: no string, a lone surrogate (it has no UTF-8 form), or a character that the vocabulary lacks.
        """
        check_encodable(text)
        return self._encode(text)

    @cached_property
    def special_tokens(self) -> dict[str, SpecialToken]:
        """Return the tokens that a chat template may write, by how they are spelled in it."""
        return {END_OF_TEXT: SpecialToken(self.end_of_text)}

    def encode_behind(self, text: str) -> list[int]:
        """Return the ids of `text` behind a special token; as `encode`, which also spells special tokens out."""
        return self.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode each text as an array of unsigned integers, which takes less room and, for some, less time.

        Raises:
            ValueError: no sequence of strings, or as `encode`.
        """
        if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence):
            raise ValueError(f"texts: {shown(texts)} is not a list of strings")
        for text in texts:
            check_encodable(text)
        return self._encode_batch(texts)

    def _encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(self._encode(text), dtype=np.uint32) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids` (integers, or a tensor); end of text and padding are skipped, broken UTF-8 becomes
        U+FFFD.

        Raises:
            ValueError: no integers in one row, or an id outside the vocabulary (a MASK that is still there, say).
        """
        numbers, known = token_ids("ids", ids), self.vocab_size + self.n_padding
        for number in numbers:
            if not 0 <= number < known:
                hint = "; it is the mask token's: decode finished text only" if number == known else ""
                raise ValueError(f"token id {number} is outside the vocabulary, 0 to {known - 1}{hint}")
        return self._decode([number for number in numbers if self._spells(number)])

    def piece(self, token: int) -> bytes:
        """Return what a token adds to the UTF-8 of a text, perhaps part of a character; nothing for end of text and for
        padding."""
        return self._piece(token) if self._spells(token) else b""

    def _spells(self, token: int) -> bool:
        return token != self.end_of_text and token < self.vocab_size

    def _piece(self, token: int) -> bytes:
        return self._decode([token]).encode()

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer_kind.json` (and what the kind adds) into `folder`, which is made if it isn't there."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = {"kind": self.kind, "fingerprint": self.fingerprint, **self._saved_state()}
        (folder / KIND_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")
        if self.chat_template is not None:
            self.chat_template.save(folder)

    def _saved_state(self) -> dict[str, Any]:
        return self.state()


def check_encodable(text: str) -> None:
    """Raise a ValueError for what is no text, or one that UTF-8 can't hold."""
    if not isinstance(text, str):
        raise ValueError(f"text: {shown(text)} is not a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text has a lone surrogate at character {error.start} ({text[error.start]!r}), which UTF-8 can't "
            "hold; remove it"
        ) from None
