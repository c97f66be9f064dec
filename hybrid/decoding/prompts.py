"""Check prompts: their ids, their length, and their gaps (infilling), which are MASK where a token is to be written.

Nothing attends to a later block. A gap is filled in view of the given tokens behind it only if they stand in its own
block, so the block size must be one with which all of them do. MASK that no given token follows is no gap but a text
to continue, at any block size.
"""

from __future__ import annotations

from collections.abc import Sequence

from hybrid.arguments import integer, prompt_ids
from hybrid.model import Transformer
from hybrid.options import shown

MAX_LENGTH = 1 << 20
"""Tokens of a text whose context slides: its keys and values are kept as a whole."""


def check_prompts(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    block_size: int,
    seq_len: int,
    slide: bool,
) -> tuple[list[list[int]], int]:
    """Return `prompts` and `max_new_tokens` as plain lists and integers.

    Raises:
        ValueError: no token ids, texts that do not fit into the context, or a gap that would not see what follows it.
    """
    rows, n = prompt_ids(prompts), integer("max_new_tokens", max_new_tokens, 0)
    vocab, mask = model.vocab_size, model.mask_token_id
    for i, row in enumerate(rows):
        if slide and len(row) + n > MAX_LENGTH:
            raise ValueError(
                f"max_new_tokens: {shown(n)} new tokens behind prompt {i} of {len(row)} tokens exceed {MAX_LENGTH}, "
                "the most that a text can have; ask for fewer"
            )
        if not slide and len(row) + n > seq_len:
            raise ValueError(
                f"max_new_tokens: {shown(n)} new tokens behind prompt {i} of {len(row)} tokens exceed the context of "
                f"{seq_len} (data.seq_len); shorten the prompt, ask for at most {max(seq_len - len(row), 0)} tokens, "
                "or let the context slide (slide)"
            )
        bad = next((t for t in row if not 0 <= t < vocab and t != mask), None)
        if bad is not None:
            raise ValueError(
                f"prompts: token {shown(bad)} of prompt {i} is not in the vocabulary (0 to {vocab - 1}), nor "
                f"the mask_token_id {mask} of a gap to be filled"
            )
    infilling_size(rows, mask, model.config.prediction, [block_size], seq_len)
    return rows, n


def unknown_from(prompt: Sequence[int], mask_token_id: int) -> int:
    """Return the first position of a prompt or behind it that is not given."""
    return prompt.index(mask_token_id) if mask_token_id in prompt else len(prompt)


def gap_span(prompt: Sequence[int], mask_token_id: int) -> tuple[int, int] | None:
    """Return the first position to fill and the last given one behind it; None if there is no such pair."""
    if mask_token_id not in prompt:
        return None
    first = unknown_from(prompt, mask_token_id)
    last = max((i for i, token in enumerate(prompt) if token != mask_token_id), default=0)
    return (first, last) if last > first else None


def check_no_gap(prompts: Sequence[Sequence[int]], mask_token_id: int, who: str) -> None:
    """Raise a ValueError for a gap with given tokens behind it, which `who` would not see."""
    for i, prompt in enumerate(prompts):
        if (span := gap_span(prompt, mask_token_id)) is not None:
            raise ValueError(
                f"decoder: {who} writes from the left and would not see what is given behind the gap at token "
                f"{span[0]} of prompt {i}; choose another decoder"
            )


def sees_both_sides(span: tuple[int, int], block_size: int, prediction: str) -> bool:
    """Return whether what is given behind the gap can be seen from all of it, at this block size.

    The first token of a block of `next_token` models is read off the block before, which sees nothing of its own.
    """
    first, last = span
    is_read_before = prediction == "next_token" and first % block_size == 0
    return first // block_size == last // block_size and not is_read_before


def infilling_size(
    prompts: Sequence[Sequence[int]], mask_token_id: int, prediction: str, sizes: Sequence[int], seq_len: int,
    others: Sequence[int] = (),
) -> int:  # fmt: skip
    """Return the first of `sizes` with which every gap sees what is given behind it.

    Args:
        others: sizes that a user may be told to take instead, before any.

    Raises:
        ValueError: none of them; the message names the gap, and a size that would do.
    """
    spans = {i: span for i, prompt in enumerate(prompts) if (span := gap_span(prompt, mask_token_id)) is not None}

    def fits(size: int) -> bool:
        return all(sees_both_sides(span, size, prediction) for span in spans.values())

    found = next((size for size in sizes if fits(size)), None)
    if found is not None:
        return found
    bad, (first, last) = next(
        (i, span) for i, span in spans.items() if not all(sees_both_sides(span, size, prediction) for size in sizes)
    )
    better = next((size for size in (*others, *range(1, seq_len + 1)) if fits(size)), None)
    tried = " or ".join(map(str, sizes))
    way_out = (
        "no block size would do: give fewer tokens behind the gap"
        + (", or some before it" if prediction == "next_token" else "")
        if better is None
        else f"block_size={better} would do{'' if better in others or not others else ' (it was not trained)'}"
    )
    raise ValueError(
        f"block_size: with {tried}, the gap at token {first} of prompt {bad} does not see the given tokens behind it, "
        f"up to token {last}, since they are not all in one block; {way_out}"
    )
