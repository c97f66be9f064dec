"""Messages of a conversation: a list of objects with a role and a content, as chat templates take them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hybrid.options import bare, nearest, shown

ROLES = ("system", "developer", "user", "assistant", "tool")
"""A template writes the role as it is, perhaps as a part of a special token: so there are no others."""

OFTEN_CALLED = {
    "messages": ("conversations", "conversation"),
    "role": ("from",), "content": ("value",),
    "user": ("human",), "assistant": ("gpt", "chatgpt", "bot", "model", "ai"),
}  # fmt: skip
"""What other formats (that of ShareGPT, say) call lists of messages, their keys and roles."""

DEEPEST = 50
"""Lists and objects in each other, of what a message holds beside its text: a call of a tool, say."""

Message = dict[str, Any]


def system_message(content: str | None) -> list[Message]:
    """Return the messages that a conversation begins with: one, or none."""
    return [] if content is None else [{"role": "system", "content": content}]


def checked_messages(value: Any, where: str) -> list[Message]:
    """Return `value` if it is a conversation, without fields that are null.

    Args:
        where: begins the message of an error.

    Raises:
        ValueError: no list of objects with one of `ROLES` and a text; says what is there.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(
            f'{where}: {shown(value)} is no conversation; it must be a list of {{"role": ..., "content": ...}}'
        )
    renamed = renaming((), value)
    return [_checked(message, f"{where}: message {i}", renamed) for i, message in enumerate(value, 1)]


def renaming(names: Iterable[Any], messages: Any = ()) -> str:
    """Say which names are ours by another word, as is done about it; then those in `messages`. "" if there are none."""
    inside = [message for message in messages if isinstance(message, dict)] if isinstance(messages, list) else []
    roles = [message.get(key) for message in inside for key in ("role", "from")]
    given = (*names, *(key for message in inside for key in message), *roles)
    to = {other: name for name, others in OFTEN_CALLED.items() for other in others}
    found = [f"{name} to {to[name]}" for name in dict.fromkeys(filter(_is_text, given)) if name in to]
    return f"rename {', '.join(found)}" if found else ""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _checked(message: Any, where: str, renamed: str) -> Message:
    renamed = f"; {renamed}" if renamed else ""
    if not isinstance(message, dict) or "role" not in message:
        found = f"has {', '.join(map(bare, message)) or 'nothing'}" if isinstance(message, dict) else shown(message)
        raise ValueError(f"{where}: {found}; it must be an object with role and content{renamed}")
    role, content = message["role"], message.get("content")
    if role not in ROLES:
        near = "" if renamed else nearest(role, ROLES)
        raise ValueError(f"{where}: role {shown(role)} is not one of {', '.join(ROLES)}{near}{renamed}")
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise ValueError(f"{where}: content is {shown(content)}; it must be a string")
    kept = {name: entry for name, entry in message.items() if entry is not None}
    try:
        texts = strings_of(list(kept.values()))
    except RecursionError:
        raise ValueError(f"{where}: it is nested deeper than {DEEPEST} levels; leave that out") from None
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(
                f"{where}: it has a lone surrogate (\\ud800 to \\udfff), which UTF-8 can't hold; remove it"
            ) from None
    kept.setdefault("content", "")
    return kept


def strings_of(value: Any, levels: int = DEEPEST) -> Sequence[str]:
    """Return all strings in a JSON value, those of keys too. Raises RecursionError for one of more than `levels`."""
    if levels < 0:
        raise RecursionError
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    return [text for item in value for text in strings_of(item, levels - 1)] if isinstance(value, list) else []
