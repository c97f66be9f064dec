"""Fit a text to a terminal: without the characters that it would obey, in lines of its columns."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

JOINER = "\u200d"
EMOJI_STYLE = "\ufe0f"
"""Behind a character that is a sign as well as an emoji: shows the emoji, two columns wide."""
SKIN_TONES = "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"


def printable(text: str) -> str:
    """Replace control characters, which a terminal would obey, by blanks; a model of bytes can produce anything.

    Everything else is kept: joiners and marks of direction belong to their languages, and to emoji.
    """
    return "".join(c if unicodedata.category(c) not in ("Cc", "Cs") or c in "\n\t" else " " for c in text)


def wrapped(line: str, width: int) -> list[str]:
    """Cut the line into pieces of at most `width` columns, at least one piece; what is joined stays together."""
    pieces, columns = [""], 0
    for cluster, wide in _clusters(line):
        if columns and columns + wide > width:
            pieces.append("")
            columns = 0
        pieces[-1] += cluster
        columns += wide
    return pieces


def _clusters(line: str) -> Iterator[tuple[str, int]]:
    """Yield characters with what is drawn upon or joined to them, and the columns of each."""
    cluster, wide = "", 0
    for c in line:
        is_joined = wide == 2 and (cluster[-1] == JOINER or c in SKIN_TONES)
        columns = 0 if is_joined else _columns(c)
        if columns and cluster:
            yield cluster, wide
            cluster, wide = "", 0
        cluster += c
        wide = 2 if c == EMOJI_STYLE and wide else max(wide, columns)
    if cluster:
        yield cluster, wide


def _columns(c: str) -> int:
    if unicodedata.category(c) in ("Mn", "Me", "Cf") or "\u1160" <= c <= "\u11ff":  # and the rest of a Hangul syllable
        return 0
    return 2 if unicodedata.east_asian_width(c) in "WF" else 1
