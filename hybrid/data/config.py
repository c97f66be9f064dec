"""The settings of the data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from hybrid.data.corpora.listing import FORMATS
from hybrid.data.corpora.locating import refuse_no_name, refuse_not_utf8
from hybrid.data.tokenizers import SUBWORD_FILE, TOKENIZERS
from hybrid.data.turns import TURNS
from hybrid.options import at_least, option, path_of, pick, shown


@dataclass
class DataConfig:
    corpus: Any = option("pydocs", "embedded (below; a mapping gives its options), or a file, glob, folder or Hub id")
    format: str = option(
        "auto",
        "of local files; auto: by suffix, also before .gz or .zst. A text file is one document, UTF-8 taken as it is",
        FORMATS,
    )
    revision: str | None = option(None, "Hub: the commit to use, 40 digits (required there)")
    subset: str | None = option(None, "Hub: name of the configuration")
    split: str = option("train", "Hub, or a folder of save_to_disk: the split to take documents from")
    column: str = option(
        "text", "jsonl, parquet, Hub: the column of text or of messages; without it, prompt and completion, or messages"
    )
    chat_template: str | None = option(
        None, "of messages: a file in Jinja; null: the tokenizer's own, else plain text that ends turns by end of text"
    )
    turns: str = option(
        "auto",
        "what follows a completion in its block: pad: end of text to the block's end; refuse: nothing may; mix: what "
        "comes next, which the completion then sees; auto: pad for messages, mix for prompt and completion",
        TURNS,
    )
    validation_fraction: float = option(0.05, "share of the documents kept for validation, chosen by their hash")
    tokenizer: str = option("byte", f"{' | '.join(TOKENIZERS)}, or a tokenizer.json, or a model's folder that has one")
    vocab_size: int = option(4096, "bpe: ids, end of text among them")
    seq_len: int = option(256, "tokens in a row")
    document_mask: bool = option(False, "no attention from one document of a row to another")
    cache_dir: str = option("", "where packed tokens are kept; empty: $HYBRID_CACHE, else ~/.cache/hybrid")

    def check(self) -> None:
        """Raise a ValueError for a value that no corpus could make right. Reads no data."""
        refuse_no_name(self.corpus)
        for key in ("tokenizer", "cache_dir", "column"):
            refuse_not_utf8(f"data.{key}", getattr(self, key))
        pick("data.format", self.format, FORMATS)
        pick("data.turns", self.turns, TURNS)
        if self.chat_template is not None:
            refuse_not_utf8("data.chat_template", self.chat_template)
            if not os.path.isfile(path_of("data.chat_template", self.chat_template)):
                raise ValueError(
                    f"data.chat_template: {shown(self.chat_template)} is no file; name one that holds a template, or "
                    "leave it out (null: the tokenizer's own)"
                )
        at_least("data.seq_len", self.seq_len, 1)
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"data.validation_fraction: {self.validation_fraction!r} must lie between 0 and 1; try 0.05"
            )
        if self.tokenizer == "bpe":
            at_least("data.vocab_size", self.vocab_size, 257)  # 256 bytes and end of text
        elif self.tokenizer not in TOKENIZERS:
            path = path_of("data.tokenizer", self.tokenizer)
            if not os.path.isfile(path) and not os.path.isfile(path / SUBWORD_FILE):
                try:
                    pick("data.tokenizer", self.tokenizer, TOKENIZERS)
                except ValueError as error:
                    raise ValueError(f"{error}, nor the path of a tokenizer.json, or of a folder with one") from None
