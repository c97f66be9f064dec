"""Tokens of the `tokenizers` library."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, Self

import numpy as np

from hybrid.data.tokenizers.base import END_OF_TEXT, LONG, SpecialToken, Tokenizer, check_encodable
from hybrid.data.tokenizers.chat_template import ChatTemplate
from hybrid.data.tokenizers.published import SUBWORD_FILE, tokenizer_file
from hybrid.options import bare, path_of
from hybrid.storage.pointers import advice

# What published tokenizers call the token that ends a document, most specific first.
END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "<|eot_id|>", "[SEP]")

REPLACEMENT = "\ufffd"
PIECE = 2**14  # characters of a piece of a long text
_WORD_ENDS = re.compile(r"(?<=\S)\s")
_OWN = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
_OTHER = [byte for byte in range(256) if byte not in _OWN]
BYTE_OF = {chr(byte): byte for byte in _OWN} | {chr(256 + i): byte for i, byte in enumerate(_OTHER)}
"""How byte-level BPE spells bytes in the names of its tokens: printable ones as they are (GPT-2)."""


class SubwordTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library: byte-level BPE trained here, or any tokenizer.json."""

    kind = "bpe"
    sized = True

    def __init__(self, tokenizer: Any, end_of_text: int | None = None) -> None:
        """Take a `tokenizers.Tokenizer` and the id that ends a text.

        Without one it is the token that is called as such tokens are, which is added if there is none.

        Raises:
            ValueError: the tokenizer has no such id.
        """
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        by_name = next((name for name in END_OF_TEXT_NAMES if name in vocab), END_OF_TEXT)
        name = by_name if end_of_text is None else tokenizer.id_to_token(end_of_text)
        if name is None:
            raise ValueError(f"end of text: {end_of_text} is none of the tokenizer's ids, 0 to {max(vocab.values())}")
        self._end_of_text_name = name
        self._is_named_otherwise = name != by_name
        tokenizer.add_special_tokens([name])
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True  # text that spells a special token stays text
        self._tokenizer = tokenizer
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values()) + 1  # some published vocabularies have holes
        self.end_of_text = vocab[self._end_of_text_name]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Self:
        """Train byte-level BPE of at most `vocab_size` ids (fewer if the texts run out of pairs), end of text first."""
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
    def from_file(cls, path: str | Path, end_of_text: int | None = None) -> Self:
        """Read a tokenizer.json, or that of the folder of a model, whose settings then say which id ends a text.

        Raises:
            ValueError: there is none, or it can't be read, or has not the id; the message names the file.
        """
        path, configured = tokenizer_file(path_of("data.tokenizer", path))
        if not path.is_file():
            raise ValueError(f"data.tokenizer: {str(path)!r} is no file; give the path of a tokenizer.json")
        import tokenizers

        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(
                f"data.tokenizer: {str(path)!r} is not a tokenizer.json that the tokenizers library reads "
                f"({bare(error, 200)}); {advice(path)}"
            ) from None
        try:
            made = cls(tokenizer, configured if end_of_text is None else end_of_text)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{path}: {error}") from None
        made.chat_template = ChatTemplate.read(path.parent)
        return made

    @property
    def name(self) -> str:
        return type(self._tokenizer.model).__name__.lower()  # bpe, unigram, wordpiece, wordlevel

    def state(self) -> dict[str, Any]:
        return {"tokenizer": self._tokenizer.to_str(), **self._end_of_text_id}

    @property
    def _end_of_text_id(self) -> dict[str, int]:
        """The id that ends a text, where no name says so."""
        return {"end_of_text": self.end_of_text} if self._is_named_otherwise else {}

    def _saved_state(self) -> dict[str, Any]:
        return {"file": SUBWORD_FILE, **self._end_of_text_id}

    def save(self, folder: str | Path) -> None:
        super().save(folder)
        (Path(folder) / SUBWORD_FILE).write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")

    @classmethod
    def from_state(cls, state: dict[str, Any], folder: Path) -> Self:
        return cls.from_file(folder / SUBWORD_FILE, state.get("end_of_text"))

    @cached_property
    def special_tokens(self) -> dict[str, SpecialToken]:
        added = self._tokenizer.get_added_tokens_decoder().items()
        return {token.content: SpecialToken(i, token.lstrip, token.rstrip) for i, token in added if token.special}

    def encode_behind(self, text: str) -> list[int]:
        check_encodable(text)
        return self._without_end_of_text(text, self._behind.encode(text, add_special_tokens=False).ids)

    @cached_property
    def _behind(self) -> Any:
        """The tokenizer for what is not the start of a text, where some put a blank in front."""
        spec = json.loads(self._tokenizer.to_str())
        parts = [spec["pre_tokenizer"] or {}]
        parts += parts[0].get("pretokenizers", [])
        first = [part for part in parts if part.get("prepend_scheme") == "first"]
        if not first:
            return self._tokenizer
        for part in first:
            part["prepend_scheme"] = "never"
        behind = type(self._tokenizer).from_str(json.dumps(spec))
        behind.encode_special_tokens = True
        return behind

    def _encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        if any(len(text) > LONG for text in texts) and self._may_be_cut:
            return [self._encode_long(text) for text in texts]
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        pairs = zip(texts, encodings, strict=True)
        return [np.array(self._without_end_of_text(text, encoding.ids), np.uint32) for text, encoding in pairs]

    def _encode_long(self, text: str) -> np.ndarray:
        """Encode in pieces: the library takes some 200 bytes of memory for one of text."""
        pieces = _pieces(text)
        parts = [np.array([], np.uint32)]
        while group := list(islice(pieces, 64)):
            encodings = self._tokenizer.encode_batch(group, add_special_tokens=False)
            parts += [np.array(encoding.ids, np.uint32) for encoding in encodings]
        ids = np.concatenate(parts)
        return np.array(self._encode(text), np.uint32) if (ids == self.end_of_text).any() else ids

    @cached_property
    def _may_be_cut(self) -> bool:
        """Return whether the pieces of a text have the tokens of the text: so for what is trained here."""
        spec = json.loads(self._tokenizer.to_str())
        cuts = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        only_special = all(token["special"] for token in spec["added_tokens"])
        return spec["pre_tokenizer"] == cuts and spec["normalizer"] is None and only_special

    def _encode(self, text: str) -> list[int]:
        return self._without_end_of_text(text, self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _without_end_of_text(self, text: str, ids: list[int]) -> list[int]:
        """Spell an end-of-text string in the text out in two pieces: some models know it as an ordinary word."""
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
