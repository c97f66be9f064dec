"""Conversations as documents: which of their tokens are learned, and where a turn has to begin a block.

Learned is what the assistant says, with the token that ends its turn, and nothing else. A turn is what a template adds
when the assistant's message is added to those before it; so the tokens are those that the model will see and write in a
conversation. A template that changes earlier messages, because later ones are there, is refused.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hybrid.data.chat import Chat
from hybrid.data.encoding import Encoded, continued
from hybrid.data.messages import Message


class Turn(NamedTuple):
    """Where the assistant speaks in a rendering: [begin, end)."""

    begin: int
    end: int


class ChangedTurn(ValueError):
    """A template writes an earlier turn in another way once others stand behind it."""


def encode_conversation(chat: Chat, messages: list[Message], where: str) -> Encoded:
    """Return a conversation as a document, whose targets are the turns of the assistant.

    Args:
        where: begins the message of an error.

    Raises:
        ValueError: there are none, the template refuses it, or changes earlier turns.
    """
    encoded = encode_turns(chat, messages, where)
    if not encoded.targets:
        raise ValueError(f"{where}: the assistant says nothing, so nothing is learned; leave it out")
    if encoded.ids[-1] == chat.tokenizer.end_of_text:  # it closes the document as well
        return encoded._replace(ids=encoded.ids[:-1])
    return encoded


def encode_turns(chat: Chat, messages: list[Message], where: str, to_be_continued: bool = False) -> Encoded:
    """Return the ids of messages; the turns of the assistant are targets.

    Args:
        to_be_continued: whether what begins a turn of the assistant stands behind them.

    Raises:
        ChangedTurn: a template does not continue the rendering of the first messages by that of more.
        ValueError: it refuses them.
    """
    shielded, back = chat.shield(messages)
    rendering = chat.rendered(shielded, to_be_continued, where)
    turns = _turns(chat, shielded, rendering, where)
    ends = [place for turn in turns for place in turn]
    tokenizer = chat.tokenizer
    ids = np.array([], np.uint32)
    is_target: list[bool] = []
    texts: list[str] = []
    target_bytes = 0
    run = ""  # the text since the last special token, and where its ids begin
    begin_of_run = 0
    for piece in chat.pieces(rendering, back, ends):
        learned = any(turn.begin <= piece.begin < turn.end for turn in turns)
        if isinstance(piece.content, int):
            ids, run, begin_of_run = np.append(ids, np.uint32(piece.content)), "", len(ids) + 1
            is_target.append(learned)
            continue
        encode = tokenizer.encode_behind if begin_of_run else tokenizer.encode
        joined, n_before = _array(encode(piece.content)), 0
        if run:
            together = _array(encode(run + piece.content))
            joined, n_before = continued(ids[begin_of_run:], joined, together, tokenizer)
        ids = np.concatenate([ids[:begin_of_run], joined])
        is_target[begin_of_run + n_before :] = [learned] * (len(joined) - n_before)
        run += piece.content
        texts.append(piece.content)
        target_bytes += learned * len(piece.content.encode())
    return Encoded(ids, _spans(is_target), "".join(texts), target_bytes, where)


def _array(ids: list[int]) -> np.ndarray:
    return np.array(ids, np.uint32)


def _spans(is_target: list[bool]) -> tuple[tuple[int, int], ...]:
    changes = np.flatnonzero(np.diff([False, *is_target, False])).tolist()
    return tuple(zip(changes[::2], changes[1::2], strict=True))


def _turns(chat: Chat, messages: list[Message], rendering: str, where: str) -> list[Turn]:
    """Return where the assistant speaks in `rendering`, that of all messages."""
    turns = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, said = chat.rendered(messages[:i], True, where), chat.rendered(messages[: i + 1], False, where)
        end = _end_of_turn(chat, said, len(before))
        if not (said.startswith(before) and rendering.startswith(said[:end])):
            raise ChangedTurn(
                f"{where}: the chat template writes message {i + 1} in another way once others stand behind it, so "
                "what is learned would not be what is seen; make each turn a conversation of its own that ends with "
                "it, or take another template (data.chat_template)"
            )
        turns.append(Turn(len(before), end))
    return turns


def _end_of_turn(chat: Chat, said: str, begin: int) -> int:
    """Return where the turn ends that begins at `begin`: with the first special token behind its text, if any."""
    end, behind = len(said), len(said)
    for found in reversed(list(chat.special.finditer(said, begin))):
        if said[found.end() : behind].strip():
            break
        end, behind = found.end(str(found.lastgroup)), found.start()
    return end
