"""The tokenizer of a corpus: read from a file, or trained on the documents."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hybrid.data.chat import TRAINED_DATE, Chat
from hybrid.data.corpora.source import Document, Documents
from hybrid.data.splitting import Survey, chunks
from hybrid.data.tokenizers import (
    END_OF_TEXT,
    TOKENIZERS,
    ByteTokenizer,
    ChatTemplate,
    SubwordTokenizer,
    Tokenizer,
)

TRAINING_CHARACTERS = 2**28  # a subword vocabulary is trained on no more than this much text


def tokenizer_of(
    name: str, vocab_size: int, documents: Documents, found: Survey, template: ChatTemplate | None
) -> Tokenizer:
    """Return the tokenizer that `name` means.

    Args:
        template: how conversations become text; None: the documents are none.
    """
    if name not in TOKENIZERS:
        return SubwordTokenizer.from_file(name)
    kind = TOKENIZERS[name]
    chat = None if template is None else Chat(ByteTokenizer(), template, TRAINED_DATE)
    if kind.needs_all_text:
        return kind.train(_texts(documents, np.concatenate(list(found.splits.values())), chat), vocab_size)
    return kind.train(_texts(documents, found.splits["train"], chat, TRAINING_CHARACTERS), vocab_size)


def _texts(documents: Documents, indices: np.ndarray, chat: Chat | None, most: float = float("inf")) -> Iterator[str]:
    characters = 0
    for chunk in chunks(documents, indices):
        for _, document in chunk:
            yield from _texts_of(document, chat)
            characters += len(document.text)
        if characters >= most:
            return


def _texts_of(document: Document, chat: Chat | None) -> list[str]:
    if document.conversation is None or chat is None:
        return [document.prompt or "", document.text]
    return chat.rendered(document.conversation.messages, False, document.conversation.where).split(END_OF_TEXT)
