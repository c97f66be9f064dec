"""Our tokenizers as tokenizer.json, and what a tokenizer_config.json says of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hybrid.data.tokenizers import END_OF_TEXT, SUBWORD_FILE, ByteTokenizer, CharTokenizer, Tokenizer
from hybrid.data.tokenizers.subword import BYTE_OF
from hybrid.storage.atomic import write_json_atomic
from hybrid.storage.json_files import read_object

TOKENIZER_CONFIG = "tokenizer_config.json"


def write_tokenizer(tokenizer: Tokenizer, folder: Path, begin: int | None, seq_len: int) -> None:
    """Write what others read, tokenizer.json and its configuration, and what `load_tokenizer` reads.

    Raises:
        ValueError: a tokenizer that tokenizer.json cannot express.
    """
    tokenizer.save(folder)
    if isinstance(tokenizer, (ByteTokenizer, CharTokenizer)):
        theirs = _bytes(tokenizer) if isinstance(tokenizer, ByteTokenizer) else _characters(tokenizer)
        theirs.save(str(folder / SUBWORD_FILE))
    elif not (folder / SUBWORD_FILE).is_file():
        raise ValueError(f"data.tokenizer: {tokenizer.kind} has no form as a {SUBWORD_FILE}")
    import tokenizers

    spelled = tokenizers.Tokenizer.from_file(str(folder / SUBWORD_FILE)).id_to_token
    end = spelled(tokenizer.end_of_text)
    # Names that a chat template of the tokenizer came with stay: it may write them, and no others.
    names = {"eos_token": end, "pad_token": end} | ({} if begin is None else {"bos_token": spelled(begin)})
    kept = read_object(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": seq_len,
        "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    write_json_atomic(folder / TOKENIZER_CONFIG, {**config, **(kept or names)})


def _bytes(tokenizer: ByteTokenizer) -> Any:
    """Byte-level BPE without a merge: the id of a byte is its value."""
    import tokenizers

    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(BYTE_OF, []))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs.decoder = tokenizers.decoders.ByteLevel()
    return _with_end(theirs, tokenizer)


def _characters(tokenizer: CharTokenizer) -> Any:
    """A word a character."""
    import tokenizers

    vocab = {character: number for number, character in enumerate(tokenizer.characters)}
    theirs = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token=END_OF_TEXT))
    any_character = tokenizers.Regex(r"[\s\S]")
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Split(any_character, "isolated")
    theirs.decoder = tokenizers.decoders.Fuse()
    return _with_end(theirs, tokenizer)


def _with_end(theirs: Any, tokenizer: Tokenizer) -> Any:
    theirs.add_special_tokens([END_OF_TEXT])
    assert theirs.token_to_id(END_OF_TEXT) == tokenizer.end_of_text
    return theirs
