"""Exact answers: what counts as solved, on engines that answer by rote and on one that decodes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from toy import toy_model

from hybrid.data.batches import PackedTokens
from hybrid.data.packing import Counts
from hybrid.decoding import GenerationConfig
from hybrid.decoding.engine import Engine
from hybrid.decoding.results import Generation
from hybrid.evaluation.answers import score

END = 9


@dataclass
class Rote:
    """Answers from a dict, cut to what is asked for; rows end at an end of text like those of the engine."""

    answers: dict[tuple[int, ...], list[int]]
    asked: list[tuple[int, int]] = field(default_factory=list)
    end: int = END
    law: str = "blocks of 1"
    model: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(end_token_ids=frozenset([END, 8])))

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, keys: Sequence[int]) -> Generation:
        self.asked.append((len(prompts), max_new_tokens))
        texts = [[*self.answers[tuple(prompt)], self.end][:max_new_tokens] for prompt in prompts]
        return Generation(texts, nfe=2, seconds=0.5)


def split_of(examples: Sequence[tuple[Sequence[int], Sequence[int]]], seq_len: int, filler: int = 0) -> PackedTokens:
    """A row per example, filled up with documents of one end-of-text token each."""
    tokens: list[int] = []
    is_target: list[int] = []
    for prompt, answer in examples:
        rest = seq_len - len(prompt) - len(answer) - 1
        tokens += [*prompt, *answer, END, *[END] * rest]
        is_target += [*[0] * len(prompt), *[1] * (len(answer) + 1 + rest)]
    counts = Counts(len(examples), len(tokens), len(tokens), sum(is_target), sum(is_target))
    return PackedTokens(np.array(tokens, np.uint16), np.array(is_target, np.uint8), counts, seq_len, END)


def rote(answers: dict[tuple[int, ...], list[int]]) -> Any:
    return Rote(answers)


EQUAL = [((1, 1), (2, 3)), ((1, 2), (3, 4)), ((1, 3), (4, 5)), ((1, 4), (5, 6))]


def test_an_answer_counts_if_every_token_is_right() -> None:
    engine = rote({(1, 1): [2, 3], (1, 2): [3, 0], (1, 3): [0, 0], (1, 4): [END]})
    answers = score(engine, split_of(EQUAL, 5))
    assert answers.solved == 1 / 4 and answers.n == 4
    assert answers.right_tokens == 3 / 8
    assert answers.stderr == pytest.approx(math.sqrt(0.25 * 0.75 / 4))
    assert (answers.nfe, answers.seconds, answers.tokens) == (2, 0.5, 8)
    assert engine.asked == [(4, 2)]  # the end of text, always in the same place, is not generated


@pytest.mark.parametrize("batch_rows", [1, 3, 64])
def test_the_rows_asked_for_in_batches(batch_rows: int) -> None:
    engine = rote({prompt: list(answer) for prompt, answer in EQUAL})
    answers = score(engine, split_of(EQUAL, 5), rows=3, batch_rows=batch_rows)
    assert (answers.solved, answers.stderr, answers.right_tokens, answers.n) == (1.0, 0.0, 1.0, 3)
    assert [n for n, _ in engine.asked] == {1: [1, 1, 1], 3: [3], 64: [3]}[batch_rows]
    assert answers.nfe == 2 * len(engine.asked)


def test_where_lengths_differ_an_answer_must_end_in_time() -> None:
    examples = [((1,), (2, 3)), ((2,), (2,)), ((3, 3, 3, 3, 3), (4,)), ((4,), (5, 6, 7, 8))]
    engine = rote({(1,): [2, 3], (2,): [2, 2], (3,) * 5: [4], (4,): [5, 6, 7, 8]})
    answers = score(engine, split_of(examples, 7), batch_rows=2)
    assert answers.solved == 3 / 4  # the second goes on after the right token
    assert answers.right_tokens == 1.0
    assert engine.asked == [(2, 2), (1, 3), (1, 5)]  # no prompt is asked for more than its row holds
    for end, solved in ((8, 3 / 4), (7, 0)):  # another token that ends a text, and one that does not
        engine.end = end
        assert score(engine, split_of(examples, 7), batch_rows=2).solved == solved


def test_the_engine_answers_as_it_generates() -> None:
    """Examples whose answers are what the model says itself, every second one spoiled."""
    model = toy_model(vocab=END + 1, n_layers=1)
    engine = Engine(model, 9, GenerationConfig(4, "margin", stop_at_end=False))
    prompts = [[i, i + 1, 3, 4] for i in range(6)]
    said = engine.generate(prompts, 4).tokens
    assert not any(END in tokens for tokens in said)
    for i in range(0, 6, 2):
        said[i][2] = (said[i][2] + 1) % END
    answers = score(engine, split_of(list(zip(prompts, said, strict=True)), 9), batch_rows=4)
    assert (answers.solved, answers.right_tokens, answers.tokens) == (0.5, 1 - 3 / 24, 24)
    assert answers.nfe == 8  # two batches, a block of four tokens each


@pytest.mark.parametrize(
    "examples, seq_len, cut, row",
    [
        (EQUAL, 5, 4, 0),  # rows shorter than an example: the answer is not whole
        (EQUAL, 5, 6, 1),  # longer: the second row begins inside an example
        ([((), (1, 2)), ((1,), (2, 3))], 4, 4, 0),  # no prompt
        ([((1, 2), ()), ((1,), (2, 3))], 4, 4, 0),  # no answer
    ],
)
def test_rows_that_are_no_examples(examples: list, seq_len: int, cut: int, row: int) -> None:
    split = split_of(examples, seq_len)
    split.seq_len = cut
    with pytest.raises(ValueError, match=rf"data.seq_len: row {row} of {cut} tokens does not begin with a prompt and"):
        score(rote({prompt: list(answer) for prompt, answer in examples}), split)


def test_text_without_prompts() -> None:
    split = split_of(EQUAL, 5)
    split.is_target = None
    with pytest.raises(ValueError, match=r"data.corpus: its documents have no prompts, so there is nothing to answer"):
        score(rote({}), split)
