"""Complete the prompts of a split, and count the answers that are right to the last token."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from hybrid.data.batches import PackedTokens
from hybrid.decoding.engine import Engine, generate_shared
from hybrid.distributed import ALONE, Ranks
from hybrid.progress import progress


@dataclass(frozen=True)
class Answers:
    """How many answers were right, and what they cost.

    Attributes:
        solved: share of the answers that are right to the last token.
        stderr: of `solved`, from the number of rows (binomial): sqrt(solved (1 - solved) / n).
        right_tokens: share of the tokens of the answers that are right.
        n: answers.
        nfe: forwards, of whole batches; like `tokens` and `seconds` 0 where it is not known (read from a file).
        tokens: generated, end-of-text tokens among them.
        seconds: of generation.
    """

    solved: float
    stderr: float
    right_tokens: float
    n: int
    nfe: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Example(NamedTuple):
    """The tokens of a prompt and of its answer, without the end-of-text token that closes it."""

    prompt: list[int]
    answer: list[int]


def score(engine: Engine, split: PackedTokens, rows: int = 0, batch_rows: int = 64, ranks: Ranks = ALONE) -> Answers:
    """Answer the prompt that each of the first `rows` rows (0: all) begins with, each rank its share of every batch.

    Where all answers have the same length, that many tokens are generated. Where they differ, an answer must also end
    where it should. `batch_rows` changes `nfe` and `seconds`, but no answer (of equal prompts: which draws they get).

    Raises:
        ValueError: rows that do not begin with a prompt and its whole answer.
    """
    examples = sorted(examples_of(split, rows), key=lambda example: len(example.answer))
    ends = int(len(examples[0].answer) != len(examples[-1].answer))  # whether an answer's end is part of it
    solved = right = wanted = nfe = tokens = 0
    seconds = 0.0
    for batch in progress(_batches(examples, batch_rows), len(examples), "answering", "prompts"):
        length = len(batch[0].answer)
        result = generate_shared(engine, [example.prompt for example in batch], length + ends, ranks)
        nfe, seconds = nfe + result.nfe, seconds + result.seconds
        tokens, wanted = tokens + sum(map(len, result.tokens)), wanted + length * len(batch)
        for example, new in zip(batch, result.tokens, strict=True):
            right += sum(a == b for a, b in zip(example.answer, new, strict=False))
            is_ended = engine.model.end_token_ids.issuperset(new[length:])
            solved += new[:length] == example.answer and len(new) == length + ends and is_ended
    n = len(examples)
    share = solved / n
    return Answers(share, math.sqrt(share * (1 - share) / n), right / wanted, n, nfe, tokens, seconds)


def _batches(examples: list[Example], batch_rows: int) -> Iterator[list[Example]]:
    """Batch answers of the same length, so that none asks for more than its row holds."""
    for _, group in groupby(examples, key=lambda example: len(example.answer)):
        same = list(group)
        for start in range(0, len(same), batch_rows):
            yield same[start : start + batch_rows]


def examples_of(split: PackedTokens, rows: int) -> list[Example]:
    """Cut from each row the prompt and the answer that it begins with."""
    if split.is_target is None:
        raise ValueError(
            "data.corpus: its documents have no prompts, so there is nothing to answer; use one with columns prompt "
            "and completion, or sudoku or sums"
        )
    n_rows = min(rows, split.n_rows) if rows else split.n_rows
    examples = []
    for row in range(n_rows):
        start = row * split.seq_len
        tokens = np.asarray(split.tokens[start : start + split.seq_len]).tolist()
        is_target = np.asarray(split.is_target[start : start + split.seq_len]).astype(bool).tolist()
        begins = start == 0 or int(split.tokens[start - 1]) == split.end_of_text
        end = tokens.index(split.end_of_text) if split.end_of_text in tokens else 0
        n_prompt = is_target[: end + 1].index(True) if any(is_target[: end + 1]) else 0
        if not begins or not 0 < n_prompt < end:
            raise ValueError(
                f"data.seq_len: row {row} of {split.seq_len} tokens does not begin with a prompt and its whole answer; "
                "set data.seq_len to the length of an example (prompt, answer and end of text), the same for all"
            )
        examples.append(Example(tokens[:n_prompt], tokens[n_prompt:end]))
    return examples
