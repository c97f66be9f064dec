"""Lay a document out so that no token that is learned sees what comes after it.

Within a block attention goes both ways. A prompt that stands in the block of an earlier completion is given, so the
completion would see the question that is asked after it, which nobody has asked when it is written. The end of a
document has the same flaw: the prompt of the next one tells where it ends.

The way out is a block that is learned to its end: behind a completion, end-of-text tokens fill it up, and are learned
as it is. Were they given, they would tell where the completion ends. Were they left out of the noise as well, nothing
would say what to write there, and decoders write whole blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property

import numpy as np

from hybrid.data.chat import PLAIN, TRAINED_DATE, Chat
from hybrid.data.conversations import ChangedTurn, encode_conversation, encode_turns
from hybrid.data.corpora.source import Document
from hybrid.data.encoding import Encoded, encode_documents
from hybrid.data.messages import Message
from hybrid.data.tokenizers import ChatTemplate, Tokenizer

TURNS = ("auto", "pad", "refuse", "mix")


@dataclass(frozen=True)
class Turns:
    """How documents with given and learned parts are laid out.

    Attributes:
        template: of conversations.
        how: an entry of `TURNS`; auto: pad for conversations, mix for prompts and completions.
        block_sizes: of all blocks that will be laid over the rows.
        seq_len: tokens of a row.
    """

    template: ChatTemplate = PLAIN
    how: str = "mix"
    block_sizes: tuple[int, ...] = (1,)
    seq_len: int = 1

    @property
    def unit(self) -> int:
        """Tokens; what stands behind a completion begins at a multiple of it. 1: wherever it likes."""
        return 1 if self.how in ("auto", "mix") else math.lcm(*self.block_sizes)

    @property
    def is_row(self) -> bool:
        return self.unit == self.seq_len > 1

    def of_documents(self, are_conversations: bool, have_prompts: bool) -> Turns:
        """Decide what `auto` means.

        Raises:
            ValueError: rows do not hold a whole number of units.
        """
        how = ("pad" if are_conversations else "mix") if self.how == "auto" else self.how
        decided = replace(self, how=how if have_prompts else "mix")
        decided.check(self.seq_len)
        return decided

    def check(self, seq_len: int) -> None:
        """Raise a ValueError unless rows of `seq_len` hold a whole number of units."""
        if seq_len % self.unit:
            sizes = ", ".join(map(str, self.block_sizes))
            raise ValueError(
                f"data.seq_len: {seq_len} is no multiple of {self.unit}, where blocks of {sizes} tokens begin "
                "together, so a turn can't be kept out of the block of the one before it; take another data.seq_len, "
                "block sizes that divide it, or data.turns=mix (a completion may then see what is asked after it)"
            )


ONE_BEHIND_THE_OTHER = Turns()


@dataclass(frozen=True)
class Encoder:
    """Encodes documents and lays them out."""

    tokenizer: Tokenizer
    turns: Turns = ONE_BEHIND_THE_OTHER
    now: datetime | None = TRAINED_DATE  # for templates that ask for the date; None: the clock

    @cached_property
    def chat(self) -> Chat:
        return Chat(self.tokenizer, self.turns.template, self.now)

    def encode(self, documents: Sequence[Document]) -> list[Encoded]:
        """Return each document as tokens. Raises ValueError for a conversation that the template does not take."""
        if all(document.conversation is None for document in documents):
            return encode_documents(documents, self.tokenizer)
        return [
            encode_conversation(self.chat, *document.conversation)
            if document.conversation is not None
            else encode_documents([document], self.tokenizer)[0]
            for document in documents
        ]

    def has_inner_ends(self, encoded: Encoded) -> bool:
        """Return whether an end of text stands within a document, between its turns."""
        filled_up = self.turns.unit > 1 and len(encoded.targets) > 1
        return filled_up or bool((encoded.ids == self.tokenizer.end_of_text).any())

    def prompt(self, messages: list[Message], where: str, at: int = 0) -> list[int]:
        """Return the ids of messages and of the start of the assistant's turn, as they stand at place `at` of a row.

        Raises:
            ValueError: the template refuses them.
        """
        try:
            encoded = encode_turns(self.chat, messages, where, to_be_continued=True)
        except ChangedTurn:  # in training there was nothing behind such a turn
            encoded = Encoded(np.array(self.chat.prompt(messages, where)), (), "", 0)
        tokens, _ = self.lay_out(encoded, at, closed=False)
        return tokens.tolist()

    def lay_out(self, encoded: Encoded, at: int = 0, closed: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens, and which of them are learned (0 or 1), of a document that begins at place `at` of its split.

        Args:
            closed: by an end of text.

        Raises:
            ValueError: something is to be filled up and may not be, or a later turn would stand in another row.
        """
        turns, end_of_text = self.turns, self.tokenizer.end_of_text
        whole = encoded.ids.astype(np.int64)
        if closed:
            whole = np.append(whole, end_of_text)
        learned = np.zeros(len(whole), np.uint8)
        for begin, end in encoded.targets:
            learned[begin:end] = 1
        if turns.unit == 1:
            return whole, learned
        if turns.is_row and len(encoded.targets) > 1:
            raise ValueError(
                f"{encoded.where}: it has several turns of the assistant, and with blocks of {turns.unit} tokens "
                "(whole rows of data.seq_len) the later ones could not see the earlier; take smaller blocks "
                "(objective.block_size), one turn a conversation, or data.turns=mix (a completion may then see what is "
                "asked after it)"
            )
        tokens: list[np.ndarray] = []
        flags: list[np.ndarray] = []
        done, length = 0, 0
        for _, end in encoded.targets:
            missing = -(at + length + end - done) % turns.unit
            if missing and turns.how == "refuse":
                raise ValueError(
                    f"{encoded.where}: a completion ends {turns.unit - missing} tokens into a block of {turns.unit}, "
                    "and would see what is asked after it; data.turns=pad fills the block up"
                )
            tokens += [whole[done:end], np.full(missing, end_of_text)]
            flags += [learned[done:end], np.ones(missing, np.uint8)]
            length += end - done + missing
            is_last = closed and end == len(whole) - 1
            done = len(whole) if missing and is_last else end  # what fills up also closes the document
        return np.concatenate([*tokens, whole[done:]]), np.concatenate([*flags, learned[done:]])
