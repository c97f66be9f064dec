"""Tokenizers: text to ids and back, lossless, with an end-of-text id that no text can produce.

Ids run from 0 to vocab_size - 1 and include `end_of_text`. MASK is no token of theirs: the model adds it after them.
To add one: subclass `Tokenizer` and register it in `TOKENIZERS`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from hybrid.options import pick

KIND_FILE = "tokenizer_kind.json"
SUBWORD_FILE = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
# What published tokenizers call the token that ends a document, most specific first.
END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "<|eot_id|>", "[SEP]")

REPLACEMENT = "\ufffd"
LONG, PIECE = 2**20, 2**14  # characters of a text that is encoded in pieces, and of a piece
_WORD_ENDS = re.compile(r"(?<=\S)\s")
_OWN = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
_OTHER = [byte for byte in range(256) if byte not in _OWN]
BYTE_OF = {chr(byte): byte for byte in _OWN} | {chr(256 + i): byte for i, byte in enumerate(_OTHER)}
"""How byte-level BPE spells bytes in the names of its tokens: printable ones as they are (GPT-2)."""


class Tokenizer(ABC):
    """What every tokenizer does. `decode(encode(text)) == text` for byte, char and our own BPE."""

    kind: ClassVar[str]  # its name in TOKENIZERS
    sized: ClassVar[bool] = False  # whether `data.vocab_size` matters to it
    needs_all_text: ClassVar[bool] = False  # trained on validation text too (an inventory, not statistics)

    vocab_size: int  # ids are 0 .. vocab_size - 1, end of text among them
    end_of_text: int

    @classmethod
    @abstractmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Self:
        """Make one for these texts. Raises ValueError for a `vocab_size` it can't have."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything that defines it, as JSON values."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: dict[str, Any], folder: Path) -> Self:
        """The reverse of `state`; `folder` is where it was saved."""

    @abstractmethod
    def _encode(self, text: str) -> list[int]: ...

    @abstractmethod
    def _decode(self, ids: list[int]) -> str: ...

    @property
    def name(self) -> str:
        return self.kind

    @property
    def fingerprint(self) -> str:
        """A hash (16 hex digits) of all that decides what `encode` returns."""
        text = json.dumps([self.kind, self.state()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; never `end_of_text`, whatever the text spells.

        Raises:
            ValueError: a lone surrogate (it has no UTF-8 form), or a character that is not in the vocabulary.
        """
        _check_encodable(text)
        return self._encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each as an array of unsigned integers, which takes less room and, for some, less time."""
        return [np.array(self.encode(text), dtype=np.uint32) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` (any integers or an integer tensor); end of text is skipped, broken UTF-8 becomes U+FFFD.

        Raises:
            ValueError: an id outside the vocabulary (a MASK that is still there, for instance).
        """
        numbers = [int(i) for i in ids]
        for number in numbers:
            if not 0 <= number < self.vocab_size:
                hint = "; it is the mask token's: decode finished text only" if number == self.vocab_size else ""
                raise ValueError(f"token id {number} is outside the vocabulary, 0 to {self.vocab_size - 1}{hint}")
        return self._decode([number for number in numbers if number != self.end_of_text])

    def piece(self, token: int) -> bytes:
        """What a token adds to the UTF-8 of a text, perhaps a part of a character; nothing for an end of text."""
        return b"" if token == self.end_of_text else self._piece(token)

    def _piece(self, token: int) -> bytes:
        return self._decode([token]).encode()

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer_kind.json` (and what the kind adds) into `folder`, which is made if it isn't there."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = {"kind": self.kind, "fingerprint": self.fingerprint, **self._saved_state()}
        (folder / KIND_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")

    def _saved_state(self) -> dict[str, Any]:
        return self.state()


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

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        for text in texts:
            _check_encodable(text)
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

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        known = np.frombuffer(self.characters.encode("utf-32-le"), dtype="<u4")  # sorted
        return [self._encode_array(text, known) for text in texts]

    def _encode_array(self, text: str, known: np.ndarray) -> np.ndarray:
        _check_encodable(text)
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


class SubwordTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library: byte-level BPE trained here, or any tokenizer.json."""

    kind = "bpe"
    sized = True

    def __init__(self, tokenizer: Any) -> None:
        """Takes a `tokenizers.Tokenizer`; adds an end-of-text token if it has none."""
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        found = [name for name in END_OF_TEXT_NAMES if name in vocab]
        self._end_of_text_name = found[0] if found else END_OF_TEXT
        tokenizer.add_special_tokens([self._end_of_text_name])
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True  # text that spells a special token stays text
        self._tokenizer = tokenizer
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values()) + 1  # some published vocabularies have holes
        self.end_of_text = vocab[self._end_of_text_name]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Self:
        """Byte-level BPE with at most `vocab_size` ids (fewer if the texts run out of pairs), end of text first."""
        if vocab_size < 257:
            raise ValueError(
                f"data.vocab_size: {vocab_size!r} is too small; bpe needs at least 257 (256 bytes and end of text)"
            )
        import tokenizers

        bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
        bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        bpe.train_from_iterator(chain.from_iterable(map(_pieces, texts)), trainer)
        return cls(bpe)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a tokenizer.json. Raises ValueError, naming the file, if there is none or it can't be read."""
        path = Path(os.path.expanduser(path))
        if not path.is_file():
            raise ValueError(f"data.tokenizer: {str(path)!r} is no file; give the path of a tokenizer.json")
        import tokenizers

        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"data.tokenizer: {str(path)!r} is not a tokenizer.json that the tokenizers library reads ({reason})"
            ) from None
        return cls(tokenizer)

    @property
    def name(self) -> str:
        return type(self._tokenizer.model).__name__.lower()  # bpe, unigram, wordpiece, wordlevel

    def state(self) -> dict[str, Any]:
        return {"tokenizer": self._tokenizer.to_str()}

    def _saved_state(self) -> dict[str, Any]:
        return {"file": SUBWORD_FILE}

    def save(self, folder: str | Path) -> None:
        super().save(folder)
        (Path(folder) / SUBWORD_FILE).write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")

    @classmethod
    def from_state(cls, state: dict[str, Any], folder: Path) -> Self:
        return cls.from_file(folder / SUBWORD_FILE)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        for text in texts:
            _check_encodable(text)
        if any(len(text) > LONG for text in texts) and self._may_be_cut:
            return [self._encode_long(text) for text in texts]
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        pairs = zip(texts, encodings, strict=True)
        return [np.array(self._without_end_of_text(text, encoding.ids), np.uint32) for text, encoding in pairs]

    def _encode_long(self, text: str) -> np.ndarray:
        """In pieces: the library takes some 200 bytes of memory for one of text."""
        pieces = _pieces(text)
        parts = [np.array([], np.uint32)]
        while group := list(islice(pieces, 64)):
            encodings = self._tokenizer.encode_batch(group, add_special_tokens=False)
            parts += [np.array(encoding.ids, np.uint32) for encoding in encodings]
        ids = np.concatenate(parts)
        return np.array(self._encode(text), np.uint32) if (ids == self.end_of_text).any() else ids

    @cached_property
    def _may_be_cut(self) -> bool:
        """Whether pieces that `_pieces` makes of a text have the tokens of the text: so for what is trained here."""
        spec = json.loads(self._tokenizer.to_str())
        cuts = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        only_special = all(token["special"] for token in spec["added_tokens"])
        return spec["pre_tokenizer"] == cuts and spec["normalizer"] is None and only_special

    def _encode(self, text: str) -> list[int]:
        return self._without_end_of_text(text, self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _without_end_of_text(self, text: str, ids: list[int]) -> list[int]:
        """Some foreign models know the end-of-text string as an ordinary word: spell it out in two pieces there."""
        if self.end_of_text not in ids:
            return ids
        first, rest = self._end_of_text_name[:1], self._end_of_text_name[1:]
        parts = text.split(self._end_of_text_name)
        pieces = [*chain.from_iterable((part, first, rest) for part in parts[:-1]), parts[-1]]
        encodings = self._tokenizer.encode_batch(pieces, add_special_tokens=False)
        return [i for encoding in encodings for i in encoding.ids if i != self.end_of_text]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _piece(self, token: int) -> bytes:
        # What it adds behind itself: at the start of a text some tokenizers drop the space that a token begins with.
        text = self._decode([token, token]).removeprefix(self._decode([token]))
        if REPLACEMENT not in text:
            return text.encode()
        name = self._tokenizer.id_to_token(token)
        if re.fullmatch("<0x[0-9A-F]{2}>", name):  # a byte of a tokenizer that spells out what it does not know
            return bytes([int(name[3:5], 16)])
        return bytes(BYTE_OF[c] for c in name) if BYTE_OF.keys() >= set(name) else text.encode()


TOKENIZERS: dict[str, type[Tokenizer]] = {"byte": ByteTokenizer, "char": CharTokenizer, "bpe": SubwordTokenizer}


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Read what `Tokenizer.save` wrote into `folder`.

    Raises:
        ValueError: it isn't there, can't be read, or is not what was saved; names the file.
    """
    path = Path(folder) / KIND_FILE
    if not path.is_file():
        raise ValueError(f"{str(folder)!r} holds no tokenizer ({KIND_FILE} is missing)")
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        kind, fingerprint = state["kind"], state["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({error!r}); restore it or make it again") from None
    tokenizer_class = TOKENIZERS[pick(f"kind in {str(path)!r}", kind, TOKENIZERS)]
    try:
        tokenizer = tokenizer_class.from_state(state, Path(folder))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({error!r}); restore it or make it again") from None
    if tokenizer.fingerprint != fingerprint:
        raise ValueError(
            f"{str(path)!r}: the tokenizer beside it is not the one that was saved "
            f"(fingerprint {tokenizer.fingerprint}, expected {fingerprint})"
        )
    return tokenizer


def _pieces(text: str) -> Iterator[str]:
    """Cut a text between a character and white space behind it, where GPT-2's rule for words never joins the two."""
    start = 0
    while len(text) - start > PIECE:
        cut = _WORD_ENDS.search(text, start + PIECE)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def _check_encodable(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text has a lone surrogate at character {error.start} ({text[error.start]!r}), which UTF-8 can't "
            "hold; remove it"
        ) from None
