r"""Text with gaps, as it is typed: `def f(x):<gap:12>return y` has a gap of 12 tokens.

A backslash before it makes it literal text: `\<gap:12>` is the text `<gap:12>`. Of several backslashes right before it
each two are one, so `\\<gap:12>` is a backslash and a gap. Nothing else is special, backslashes elsewhere included.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from hybrid.data.tokenizers import Tokenizer
from hybrid.options import shown

_ANCHORS = ("a", "0", ".", "e")
"""Texts that something may go on behind."""
_MARK = re.compile(r"(\\*)<gap:([^<>]*)>")


def ids_with_gaps(text: str, tokenizer: Tokenizer, mask_token_id: int, most: int) -> list[int]:
    """Return token ids, `mask_token_id` where something is to be filled in.

    The pieces between gaps are encoded one by one, those behind a gap as something that goes on.

    Args:
        most: tokens of a gap.

    Raises:
        ValueError: no gap, or one without a length from 1 to `most`.
    """
    ids: list[int] = []
    literal, position, n_gaps = "", 0, 0
    for mark in _MARK.finditer(text):
        slashes, length = mark.groups()
        literal += text[position : mark.start()] + "\\" * (len(slashes) // 2)
        position = mark.end()
        if len(slashes) % 2:
            literal += mark.group()[len(slashes) :]
            continue
        if not re.fullmatch("0*[1-9][0-9]{0,8}", length) or int(length) > most:
            raise ValueError(
                f"--infill: {shown(mark.group()[len(slashes) :])} is no gap of 1 to {most} tokens, such as <gap:8>; a "
                "backslash before it makes it plain text"
            )
        ids += [*_encoded(literal, tokenizer, n_gaps > 0), *[mask_token_id] * int(length)]
        literal, n_gaps = "", n_gaps + 1
    if not n_gaps:
        raise ValueError("--infill: the prompt has no gap; mark one with its number of tokens, such as <gap:8>")
    return ids + _encoded(literal + text[position:], tokenizer, is_behind=True)


def _encoded(text: str, tokenizer: Tokenizer, is_behind: bool) -> list[int]:
    """Without the blank with which some tokenizers begin every text, or what else they do at a start, if it is none."""
    alone = tokenizer.encode(text) if text else []
    for anchor in _ANCHORS if is_behind else ():
        try:
            before, together = tokenizer.encode(anchor), tokenizer.encode(anchor + text)
        except ValueError:  # not in the vocabulary
            continue
        if tokenizer.decode([*before, *alone]) == tokenizer.decode(before) + text:
            break
        if together[: len(before)] == before:
            return together[len(before) :]
    return alone


def gaps_of(ids: Sequence[int], mask_token_id: int) -> list[tuple[int, int]]:
    """Return where each run of `mask_token_id` begins and ends."""
    gaps, position = [], 0
    for is_gap, run in groupby(ids, lambda token: token == mask_token_id):
        n = len(list(run))
        if is_gap:
            gaps.append((position, position + n))
        position += n
    return gaps
