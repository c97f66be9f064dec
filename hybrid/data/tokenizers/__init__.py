"""Tokenizers: text to ids and back, lossless, with an end-of-text id that no text can produce.

Ids run from 0 to vocab_size - 1 and include `end_of_text`. MASK is no token of theirs: the model adds it after them.
To add one: subclass `Tokenizer` and register it in `TOKENIZERS`.
"""

from __future__ import annotations

from pathlib import Path

from hybrid.data.tokenizers.base import END_OF_TEXT, KIND_FILE, SpecialToken, Tokenizer
from hybrid.data.tokenizers.chat_template import ChatTemplate
from hybrid.data.tokenizers.plain import ByteTokenizer, CharTokenizer
from hybrid.data.tokenizers.subword import SUBWORD_FILE, SubwordTokenizer
from hybrid.options import bare, pick
from hybrid.storage.json_files import read_json

__all__ = ["END_OF_TEXT", "SUBWORD_FILE", "TOKENIZERS", "ByteTokenizer", "CharTokenizer", "ChatTemplate",
           "SpecialToken", "SubwordTokenizer", "Tokenizer", "load_tokenizer"]  # fmt: skip

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
        state = read_json(path)
        kind, fingerprint = state["kind"], state["fingerprint"]
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{str(path)!r} is damaged ({reason}); restore it or make it again") from None
    except (KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({error!r}); restore it or make it again") from None
    tokenizer_class = TOKENIZERS[pick(f"kind in {str(path)!r}", kind, TOKENIZERS)]
    try:
        tokenizer = tokenizer_class.from_state(state, Path(folder))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({error!r}); restore it or make it again") from None
    if tokenizer.fingerprint != fingerprint:
        raise ValueError(
            f"{str(path)!r}: the tokenizer beside it is not the one that was saved "
            f"(fingerprint {tokenizer.fingerprint}, expected {bare(fingerprint)})"
        )
    tokenizer.chat_template = ChatTemplate.read(Path(folder))
    return tokenizer
