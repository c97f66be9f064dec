"""A conversation in the terminal: what is typed, the replies as they are written, and a context that gets full."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TextIO

from hybrid.cli import Terminated
from hybrid.data.messages import Message, checked_messages, system_message
from hybrid.data.tokenizers import Tokenizer
from hybrid.data.turns import Encoder, Turns
from hybrid.decoding.engine import Engine
from hybrid.decoding.results import GenerationState
from hybrid.model import Transformer
from hybrid.text.console import Console, Texts
from hybrid.text.terminal import printable

QUIT = "/quit"
LEAST_SHARE = 4
"""Of the context, one in so many tokens is kept free for a reply."""


@dataclass(frozen=True)
class ChatPrompts:
    """Turns conversations into prompts.

    Args:
        data: what is recorded of the data of the model's training. If these were conversations, what is behind a turn
            of the assistant begins where it did in training; else the ids are those of transformers.

    Raises:
        ValueError: the tokenizer has no chat template.
    """

    model: Transformer
    tokenizer: Tokenizer
    data: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, lm: Any) -> ChatPrompts:
        """Make them for a loaded model (`hybrid.LanguageModel`)."""
        return cls(lm.model, lm.tokenizer, lm.origin.data)

    def __post_init__(self) -> None:
        if self.tokenizer.chat_template is None:
            raise ValueError(
                "messages: the model has no chat template, which says how they become text; put chat_template.jinja of "
                "its publisher beside its tokenizer.json, or train on messages (data.column=messages)"
            )

    @cached_property
    def _encoder(self) -> Encoder:
        assert self.tokenizer.chat_template is not None
        unit = dict(self._turns or {}).get("unit", 1)
        return Encoder(self.tokenizer, Turns(self.tokenizer.chat_template, "pad", (unit,), seq_len=0), now=None)

    @property
    def _turns(self) -> Mapping[str, Any] | None:
        return (self.data or {}).get("turns")

    def _ids(self, messages: list[Message], at: int = 0) -> list[int]:
        """Return the ids of messages that begin at place `at` of a row."""
        if self._turns is None:
            return self._encoder.chat.prompt(messages)
        return self._encoder.prompt(messages, "messages", at)

    def __call__(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the ids of a conversation that the assistant is to continue.

        A begin token at the start of a template is left out: the network puts its own before the text.

        Raises:
            ValueError: the template refuses it, or a message spells MASK.
        """
        checked = checked_messages([dict(message) for message in messages], "messages")
        ids = self._ids(checked)
        if self.model.config.begin and ids[:1] == [self.model.begin_token_id]:
            ids = self._ids(checked, at=-1)[1:]
        if self.model.mask_token_id in ids:
            raise ValueError(f"messages: they hold the token of MASK (id {self.model.mask_token_id}); leave it out")
        return ids


@dataclass
class ChatSession:
    """A model that one talks to.

    Args:
        new_tokens: of a reply; None: as many as the context holds.
        goes_on: behind a message that can't be sent; else that is an error.
    """

    engine: Engine
    prompts: ChatPrompts
    new_tokens: int | None = None
    stops: Sequence[str] = ()
    goes_on: bool = False
    stream: TextIO = field(default_factory=lambda: sys.stdout)
    notes: TextIO = field(default_factory=lambda: sys.stderr)

    def converse(self, lines: Iterator[str], system: str | None = None) -> Texts:
        """Answer every line until /quit or the end. Return all replies, and what they cost."""
        messages, replies = system_message(system), []
        for line in lines:
            if line.strip() == QUIT:
                break
            if not line.strip():
                continue
            asked: list[Message] = [*messages, {"role": "user", "content": line}]
            try:
                kept = self._fitting(asked)
            except ValueError as error:  # the tokenizer lacks a character, or the template refuses the message
                if not self.goes_on:
                    raise
                print(f"({error}; this message was not sent)", file=self.notes)
                continue
            if kept is None:
                print("(this message does not fit into the context; it was not sent)", file=self.notes)
                continue
            if len(kept) < len(asked):
                left_out = len(asked) - len(kept)
                print(f"(the context is full: the oldest {left_out} messages are forgotten)", file=self.notes)
            texts = self.reply(kept)
            replies.append(texts)
            messages = [*kept, {"role": "assistant", "content": texts.texts[0]}]
        return Texts.one_after_another(replies)

    def _fitting(self, messages: list[Message]) -> list[Message] | None:
        """Return the messages without the oldest, so that a reply has room; None if the last alone does not fit."""
        seq_len = self.engine.seq_len
        free = min(self.new_tokens or seq_len, max(seq_len // LEAST_SHARE, 1))
        head = 1 if messages[0]["role"] == "system" else 0
        users = [i for i, message in enumerate(messages) if message["role"] == "user"]
        for first in users:
            kept = messages[:head] + messages[first:]
            room = seq_len - len(self.prompts(kept))
            if room >= free or (first == users[-1] and room > 0):
                return kept
        return None

    def reply(self, messages: list[Message]) -> Texts:
        """Write a reply as it comes; Ctrl-C ends it."""
        ids = self.prompts(messages)
        room = self.engine.seq_len - len(ids)
        n = min(self.new_tokens or room, room)
        model = self.engine.model
        console = Console(self.prompts.tokenizer, model.mask_token_id, "", self.stops, ends=model.end_token_ids)
        writer = Writer(self.stream, self.stops)
        last: GenerationState | None = None
        reason, started = "length", time.perf_counter()
        try:
            for state in self.engine.stream([ids], n):
                last = until_end(state, model.end_token_ids) if self.engine.config.stop_at_end else state
                text, is_stopped = console.so_far(last)
                writer.write(text)
                if is_stopped:
                    break
        except Terminated:
            raise
        except KeyboardInterrupt:
            reason = "interrupted"
        texts = console.result(last, 1, time.perf_counter() - started, reason)
        writer.finish(texts.texts[0])
        return texts


def until_end(state: GenerationState, ends: Collection[int]) -> GenerationState:
    """Return the state of a single text without what stands behind its end, in a block that is not finished yet."""
    ((begin, _),) = state.spans
    end = next((i for i, token in enumerate(state.tokens[0], 1) if token in ends), None)
    return state if end is None else replace(state, spans=[(begin, begin + end)])


@dataclass
class Writer:
    """Writes a text piece by piece as its end becomes known."""

    stream: TextIO
    stops: Sequence[str] = ()
    written: str = ""

    def write(self, text: str, is_whole: bool = False) -> None:
        """Write what is new; of a text that goes on, no half characters, and nothing that a stop string may begin."""
        if not is_whole:
            text = text.rstrip("\ufffd")
            begun = [n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
            text = text[: len(text) - max(begun, default=0)]
        if is_whole and not text.startswith(self.written):  # a tokenizer that spells a token by what follows it
            text = f"{self.written}\n{text}"
        if text.startswith(self.written):
            new = text[len(self.written) :]
            self.stream.write(printable(new) if self.stream.isatty() else new)
            self.stream.flush()
            self.written = text

    def finish(self, text: str) -> None:
        self.write(text, is_whole=True)
        self.stream.write("\n")
        self.stream.flush()


def typed(stdin: TextIO, prompt: str = "> ") -> Iterator[str]:
    """Yield the lines of standard input; a terminal shows a prompt, and lets one edit them."""
    if not stdin.isatty():
        yield from (line.rstrip("\r\n") for line in stdin)
        return
    with suppress(ImportError):
        import readline  # noqa: F401, what `input` edits with
    while True:
        try:
            yield input(prompt)
        except EOFError:
            print()
            return
