"""What is to be scored of a request: tokens of a row, some of them given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hybrid.evaluation.own_model import equally_long
from hybrid.options import bare, shown

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Piece:
    """A row of tokens that begins at position 0; the first `n_given` are given, the others are scored.

    Blocks are counted from position 0. A block in which the context ends has its tokens given.
    """

    ids: tuple[int, ...]
    n_given: int

    @property
    def context(self) -> tuple[int, ...]:
        return self.ids[: self.n_given]

    @property
    def continuation(self) -> tuple[int, ...]:
        return self.ids[self.n_given :]


def encode_pair(encode: Encode, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Encode a context and what follows it as the harness does: as one text, that is then divided.

    Spaces that end the context begin the continuation. Where a token crosses the border, the two are encoded apart. An
    empty context has no token: a row that begins with the continuation is what the model has learned of it.
    """
    n_spaces = len(context) - len(context.rstrip())
    if context.strip() and n_spaces:
        context, continuation = context[:-n_spaces], context[-n_spaces:] + continuation
    before, whole = encode(context), encode(context + continuation)
    if whole[: len(before)] == before and len(whole) > len(before):
        return before, whole[len(before) :]
    return before, encode(continuation)


def refuse_several(texts: Sequence[Any]) -> None:
    """Raise a ValueError for a list of texts where a request has one."""
    if several := next((each for each in texts if isinstance(each, (list, dict))), None):
        raise ValueError(
            f"tasks: {shown(several)} is a {type(several).__name__}; let doc_to_text and doc_to_target give one text "
            "(a choice of several is output_type: multiple_choice)"
        )


def fitted(context: Sequence[int], continuation: Sequence[int], seq_len: int, text: str) -> Piece:
    """Join them to a row of at most `seq_len` tokens, which are the last ones of the context.

    Args:
        text: the continuation, for the message.

    Raises:
        ValueError: the continuation has no token, or more than fit.
    """
    if not continuation:
        raise ValueError(f"tasks: the continuation {shown(text)} has no token; nothing of it can be scored")
    if len(continuation) > seq_len:
        raise ValueError(
            f"tasks: the continuation {bare(text, 60)!r} has {len(continuation)} tokens and the context {seq_len} "
            "(data.seq_len); shorten it, or score it as a whole text (output_type: loglikelihood_rolling)"
        )
    given = list(context)[-(seq_len - len(continuation)) :] if len(continuation) < seq_len else []
    return Piece((*given, *continuation), len(given))


def batches(pieces: Sequence[Piece], most: int) -> Iterator[list[int]]:
    """Yield the numbers of pieces that are scored together: as long as each other, and no two of the same tokens.

    So no row needs padding, and the noise of a row, which is keyed by its tokens and how many equal ones precede it in
    its batch, does not depend on the batch.
    """
    seen: Counter[tuple[int, ...]] = Counter()
    rounds: dict[int, list[int]] = {}
    for number, piece in enumerate(pieces):
        rounds.setdefault(seen[piece.ids], []).append(number)
        seen[piece.ids] += 1
    for numbers in rounds.values():
        for batch in equally_long([pieces[number].ids for number in numbers], most):
            yield [numbers[i] for i in batch]
