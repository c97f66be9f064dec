"""Conversations as tokens: what the template writes may be a special token, what people wrote never is.

A special token that stands in the content of a message is text. To keep the two apart, characters of the content that
could begin or end a special token are replaced, before the template sees them, by others that stand nowhere else; when
the rendered text has been cut at its special tokens they come back. Marks that the template itself looks for, such as
`</think>`, stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

from hybrid.data.messages import Message, strings_of
from hybrid.data.tokenizers import END_OF_TEXT, ChatTemplate, SpecialToken, Tokenizer
from hybrid.options import bare

PLAIN = ChatTemplate(
    "{% for message in messages %}"
    "{{ message.role | capitalize }}:\n{{ message.content }}"
    "{{ eos_token if message.role == 'assistant' else '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}",
    {"eos_token": END_OF_TEXT},
)
"""For tokenizers that bring none along: plain text, in which the end of text ends a turn of the assistant."""

TRAINED_DATE = datetime(2025, 1, 1)
"""What templates that write the date are told in training, so that it has the same tokens every day."""

PRIVATE = range(0xF0000, 0xFFFFE)
"""Code points that no text means anything by."""


class Piece(NamedTuple):
    """A text, or a special token, of a rendered conversation, and where it begins."""

    content: str | int
    begin: int


@dataclass(frozen=True)
class Chat:
    """A tokenizer with a chat template.

    Raises:
        ValueError: the template is no Jinja.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    now: datetime | None = None  # None: the clock
    _render: Callable[..., str] = field(init=False, repr=False)
    _literals: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        from hybrid.data.jinja import compiled  # Jinja is loaded where it is needed

        render, literals = compiled(self.template.source, self.now)
        object.__setattr__(self, "_render", render)
        found = {text for text in literals if self._edges & {*text} and not self.special.search(text)}
        object.__setattr__(self, "_literals", frozenset(found))

    @cached_property
    def special_tokens(self) -> dict[str, SpecialToken]:
        return {name: token for name, token in self.tokenizer.special_tokens.items() if name}

    @cached_property
    def special(self) -> re.Pattern[str]:
        """Finds the special tokens of a rendering, of those that begin alike the longest."""
        tokens = sorted(self.special_tokens.items(), key=lambda item: -len(item[0]))
        spelled = [
            r"\s*" * token.lstrip + f"(?P<t{token.id}>{re.escape(name)})" + r"\s*" * token.rstrip
            for name, token in tokens
        ]
        blank = r"\s" * any(token.lstrip for _, token in tokens)
        starts = re.escape("".join({name[0] for name, _ in tokens}))
        return re.compile(f"(?=[{starts}{blank}])(?:{'|'.join(spelled)})")  # few characters are looked at twice

    @cached_property
    def _edges(self) -> set[str]:
        return {name[i] for name in self.special_tokens for i in (0, -1)}

    def rendered(self, messages: Sequence[Message], to_be_continued: bool, where: str) -> str:
        """Return the text of messages.

        Args:
            to_be_continued: whether what begins a turn of the assistant stands behind them.
            where: begins the message of an error.

        Raises:
            ValueError: the template refuses them.
        """
        try:
            return self._render(messages=messages, add_generation_prompt=to_be_continued, **self.template.names)
        except Exception as error:  # whatever a template does
            raise ValueError(
                f"{where}: the chat template refuses this conversation ({bare(str(error) or type(error).__name__, 200)}"
                "); change the conversation, or take another template"
            ) from None

    def shield(self, messages: Sequence[Message]) -> tuple[list[Message], dict[int, str]]:
        """Return the messages with characters replaced, and what brings those back (`str.translate`).

        Raises:
            ValueError: no characters are left to take their place.
        """
        texts = strings_of([[value for key, value in m.items() if key != "role"] for m in messages])
        seen = self._edges & set().union(*texts)
        if not seen:
            return list(messages), {}
        taken = set().union(*texts, self.template.source)
        free = (chr(code) for code in PRIVATE if chr(code) not in taken)
        shields = dict(zip(sorted(seen), free, strict=False))
        if len(shields) < len(seen):
            raise ValueError("messages: they have nearly all characters of the private use areas; leave some out")

        def shielded(value: Any) -> Any:
            if isinstance(value, str):
                return self._shielded(value, shields)
            if isinstance(value, dict):
                return {shielded(key): shielded(entry) for key, entry in value.items()}
            return [shielded(entry) for entry in value] if isinstance(value, list) else value

        result = [{key: v if key == "role" else shielded(v) for key, v in message.items()} for message in messages]
        return result, {ord(shield): character for character, shield in shields.items()}

    def _shielded(self, text: str, shields: dict[str, str]) -> str:
        marks = [text[m.start() : m.end()] for m in self._marks.finditer(text)] if self._literals else []
        between = self._marks.split(text) if self._literals else [text]
        table = str.maketrans(shields)
        pieces = [between[0].translate(table)]
        for mark, piece in zip(marks, between[1:], strict=True):
            pieces += [mark, piece.translate(table)]
        # What the template looks for may have put a special token together.
        return self.special.sub(lambda found: found[0].translate(table), "".join(pieces))

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self._literals, key=len, reverse=True))))

    def pieces(self, rendering: str, shields: dict[int, str], cuts: Iterable[int] = ()) -> list[Piece]:
        """Cut a rendering at its special tokens, and at the places `cuts` of its texts."""
        pieces: list[Piece] = []
        ends = sorted(set(cuts))

        def add_text(begin: int, end: int) -> None:
            for cut in [*(cut for cut in ends if begin < cut < end), end]:
                if cut > begin:
                    pieces.append(Piece(rendering[begin:cut].translate(shields), begin))
                begin = cut

        begin = 0
        for found in self.special.finditer(rendering):
            add_text(begin, found.start())
            name = str(found.lastgroup)
            pieces.append(Piece(int(name[1:]), found.start(name)))
            begin = found.end()
        add_text(begin, len(rendering))
        return pieces

    def prompt(self, messages: Sequence[Message], where: str = "messages") -> list[int]:
        """Return the ids of messages and of what begins the assistant's turn behind them."""
        shielded, back = self.shield(messages)
        pieces = self.pieces(self.rendered(shielded, True, where), back)
        ids: list[int] = []
        for piece in pieces:
            if isinstance(piece.content, int):
                ids.append(piece.content)
            else:
                ids += self.tokenizer.encode_behind(piece.content) if ids else self.tokenizer.encode(piece.content)
        return ids
