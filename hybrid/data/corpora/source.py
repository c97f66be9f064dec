"""A corpus: a source of documents, perhaps of known entropy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from hybrid.data.messages import Message, checked_messages
from hybrid.options import shown

# Of documents that are generated, as measured; they are made in memory.
BYTES_PER_CHARACTER, BYTES_PER_DOCUMENT, MOST_BYTES = 24, 400, 2**33


class Conversation(NamedTuple):
    messages: list[Message]
    where: str  # for messages: "FILE, line 3"


class Document(NamedTuple):
    """What is learned as one piece, closed by an end-of-text token. Only `text`, not `prompt`, is a target.

    Documents of the same `group` fall into the same split; without one, only equal documents are sure to. Of a
    conversation the turns of the assistant are targets, and `text` is its JSON, by which it is known.
    """

    text: str
    prompt: str | None = None
    group: str | None = None
    conversation: Conversation | None = None

    @classmethod
    def of_messages(cls, messages: Any, where: str) -> Document:
        """Make one of a conversation. Raises ValueError, which begins with `where`, for what is none."""
        checked = checked_messages(messages, where)
        return cls(json.dumps(checked, ensure_ascii=False), conversation=Conversation(checked, where))


class Documents(Protocol):
    """Documents by index; reading many at once is what is fast."""

    @property
    def has_prompts(self) -> bool: ...
    def __len__(self) -> int: ...
    def read(self, indices: Sequence[int]) -> list[Document]: ...


@dataclass(frozen=True)
class InMemory:
    """Documents of a list."""

    documents: Sequence[Document]

    @property
    def has_prompts(self) -> bool:
        return any(document.prompt is not None for document in self.documents) or self.has_conversations

    @property
    def has_conversations(self) -> bool:
        return any(document.conversation is not None for document in self.documents)

    def __len__(self) -> int:
        return len(self.documents)

    def read(self, indices: Sequence[int]) -> list[Document]:
        return [self.documents[i] for i in indices]


class Source(Protocol):
    """Where text comes from."""

    def identity(self) -> str:
        """Return what changes when the content may have changed: the key of the cache. Quick."""
        ...

    def load(self, folder: Path) -> Documents:
        """Return the documents; `folder` is scratch space on disk, which may not be there yet."""
        ...


@runtime_checkable
class KnownEntropy(Protocol):
    """A source whose documents, without prompts, are independent draws from one known law."""

    def entropy(self) -> float: ...  # nats of a document, in expectation
    def log_prob(self, texts: Sequence[str]) -> np.ndarray: ...  # nats of each


def refuse_too_much(key: str, documents: int, characters: int) -> None:
    """Raise ValueError if so many generated documents, of so many characters each, do not fit into memory."""
    needed = documents * (characters * BYTES_PER_CHARACTER + BYTES_PER_DOCUMENT)
    if needed > MOST_BYTES:
        raise ValueError(
            f"{key}: {shown(documents)} documents of {characters:,} characters take some {shown(needed >> 30)} GiB of "
            f"memory to make, more than {MOST_BYTES >> 30}; lower it"
        )
