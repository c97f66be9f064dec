"""The text of generated tokens.

It depends on what stands before them (many tokenizers drop the space that begins a text), so it is the text of prompt
and new tokens together, without that of the prompt.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hybrid.data.tokenizers import END_OF_TEXT, Tokenizer


def continuation(
    tokenizer: Tokenizer, prompt: Sequence[int], new: Sequence[int], between: str = END_OF_TEXT,
    ends: Collection[int] = (),
) -> str:  # fmt: skip
    """Return what the tokens `new` add to the text of `prompt`.

    A character of which the prompt holds the first bytes only belongs to what is added, as a whole.

    Args:
        between: stands for an end-of-text token that something follows, as between two documents; one that nothing
            follows adds nothing.
        ends: ids that end a text besides (`Transformer.end_token_ids`).
    """
    ends = {tokenizer.end_of_text, *ends}
    last = max((i for i, token in enumerate(prompt) if token in ends), default=-1)
    before = list(prompt[last + 1 :])  # what stands before an end is another text
    texts = []
    for document in _documents(new, ends):
        texts.append(_added(tokenizer, before, document))
        before = []
    return between.join(texts)


def _documents(tokens: Sequence[int], ends: Collection[int]) -> list[list[int]]:
    documents: list[list[int]] = [[]]
    for i, token in enumerate(tokens):
        if token not in ends:
            documents[-1].append(token)
        elif i < len(tokens) - 1:
            documents.append([])
    return documents


def _added(tokenizer: Tokenizer, before: list[int], new: list[int]) -> str:
    whole = tokenizer.decode([*before, *new])
    if not before:
        return whole
    own = tokenizer.decode(before)
    if not whole.startswith(own):  # an incomplete character at its end has become another one
        same = (a == b for a, b in zip(own, whole, strict=False))
        own = own[: next((i for i, is_same in enumerate(same) if not is_same), len(whole))]
    return whole[len(own) :]


def spelled(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Spell tokens in the middle of a text whose earlier tokens are not known; each counts for itself."""
    end = tokenizer.end_of_text
    parts = [END_OF_TEXT.encode() if token == end else tokenizer.piece(token) for token in tokens]
    return b"".join(parts).decode("utf-8", errors="replace")
