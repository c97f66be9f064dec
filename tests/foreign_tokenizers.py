"""Small tokenizers shaped like published ones, as tokenizer.json files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hybrid.data.tokenizers import SubwordTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789+=.,"


def sentencepiece(path: Path, pieces: tuple[str, ...] = ()) -> str:
    """Unigram over letters and `pieces`; a text gets a blank in front, which decoding takes away."""
    import tokenizers

    vocab = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -3.0)]
    vocab += [(letter, -4.0) for letter in LETTERS] + [(piece, -2.0) for piece in pieces]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(vocab, unk_id=0))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    tokenizer.save(str(path))
    return str(path)


def wordpiece(path: Path, words: tuple[str, ...] = ()) -> str:
    """Lower-case words and letters; what it does not know is [UNK]."""
    import tokenizers

    entries = ["[UNK]", "[SEP]", *words, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    vocab = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    tokenizer.save(str(path))
    return str(path)


def foreign(path: Path, vocab: dict[str, int] | list, model: str, decoder: Any, **options: Any) -> SubwordTokenizer:
    content = {"version": "1.0", "added_tokens": [], "decoder": decoder}
    content["model"] = {"type": model, "vocab": vocab, **options}
    for key in ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor"):
        content[key] = None
    path.write_text(json.dumps(content))
    return SubwordTokenizer.from_file(path)
