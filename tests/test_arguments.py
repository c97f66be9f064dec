"""What Python callers pass: ValueErrors that name the argument, or the value as it was meant."""

from __future__ import annotations

import dataclasses
import re
import typing
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from decoding_toy import context_of, engine
from toy import toy_model

import hybrid
from hybrid.decoding import DECODERS
from hybrid.decoding.unmasking import MAX_COUNT
from hybrid.options import build

HUGE = 10**30
GENERATE = [
    ("prompts", [None, 5, 1.5, b"abc", {}, {1, 2}, [1, 2], [[72.9]], [["a"]], [[None]], [[True]], [None], [{}]]),
    ("prompts", [np.zeros((1, 2)), np.zeros((2, 2, 2), int), torch.zeros(1, 2), torch.ones(2, 2, dtype=torch.bool)]),
    ("prompts", [torch.tensor([1, 2]), [torch.tensor([1.0])], [np.zeros((1, 2), int)], [[-1]], [[HUGE]], iter([[1]])]),
    ("max_new_tokens", [None, True, -1, 1.5, 4.0, "4", HUGE, [4], float("nan"), float("inf"), torch.tensor(1.0)]),
    ("block_size", [True, [4], (4,), 4.0, "eight", 0, -4, HUGE, float("nan"), {"size": 4}]),
    ("decoder", [None, 5, True, [], "nope", {"name": "margin", "steps": "2"}, {}]),
    ("temperature", [None, "1", True, -1, float("nan"), float("inf"), 1e-320, 1e-9, 1e300, HUGE**20, [1.0], 1j]),
    ("top_k", ["5", True, 0, -1, 1.5, float("nan"), [5]]),
    ("top_p", ["0.9", True, 0, -0.1, 1.1, float("nan"), float("inf"), 1e-400, [0.9]]),
    ("noise", [None, 5, "Gumbel", ["gumbel"]]),
    ("seed", [None, "0", True, 1.5, 1 << 63, -(1 << 63) - 1, HUGE, float("nan"), [0]]),
    ("cache", [None, "no", 1]),
    ("stop_at_end", [None, "no", 0]),
    ("guidance", [None, "1", True, -1, float("nan"), float("inf"), 1e300, [1]]),
    ("planner", [5, True, [], "/nothere", 1.5]),
    ("slide", [None, "no", 1]),
]  # fmt: skip
NLL = [
    ("tokens", [None, 5, "abc", [[1]], np.zeros((1, 2), int), torch.zeros(1, 2, dtype=torch.int32), torch.ones(1, 1)]),
    ("block_size", [True, [4], 4.0, 0, HUGE]),
    ("method", [None, 5, ["bound"], "guess"]),
    ("draws", [None, True, 0, -1, 1.5, "many", float("nan"), 1_000_000_007, HUGE, [1]]),
    ("seed", [None, "0", True, 1.5, 1 << 63, HUGE]),
]


def cases(table: list[tuple[str, list[Any]]]) -> list[Any]:
    return [pytest.param(name, value, id=f"{name}-{i}") for name, values in table for i, value in enumerate(values)]


@pytest.mark.parametrize("name, value", cases(GENERATE))
def test_what_generate_and_stream_are_not(name: str, value: Any, lm: hybrid.LanguageModel) -> None:
    arguments = {"prompts": [[1]], "max_new_tokens": 2, name: value}
    for call in (lm.generate, lambda **options: list(lm.stream(**options))):
        with pytest.raises(ValueError, match=rf"^{name}\b") as error:
            call(**arguments)
        assert len(str(error.value)) < 500


@pytest.mark.parametrize("name, value", cases(NLL))
def test_what_nll_and_logits_are_not(name: str, value: Any, lm: hybrid.LanguageModel) -> None:
    arguments = {"tokens": torch.tensor([[1, 2, 3]]), name: value}
    with pytest.raises(ValueError, match=rf"^{name}\b") as error:
        lm.nll(**arguments)
    assert len(str(error.value)) < 500
    if name in ("tokens", "block_size"):
        with pytest.raises(ValueError, match=rf"^{name}\b"):
            lm.logits(**arguments)


def test_a_block_size_is_told_its_range(lm: hybrid.LanguageModel) -> None:
    for value in ([8], True, 4.0, (4,), 10**5000):
        with pytest.raises(ValueError, match=rf"^block_size: .* (1 to|data.seq_len =) {lm.config.data.seq_len}\b"):
            lm.generate([[1]], 2, block_size=value)


@pytest.mark.parametrize("folder", [None, "", 5, b"saved", "a\0b"])
def test_what_save_is_not(folder: Any, lm: hybrid.LanguageModel) -> None:
    with pytest.raises(ValueError, match=r"^folder: .* is not a path$"):
        lm.save(folder)


@pytest.mark.parametrize("path", [None, 5, b"runs", [], True])
def test_what_load_is_not(path: Any) -> None:
    with pytest.raises(ValueError, match=r"^path: "):
        hybrid.load(path)


@pytest.mark.parametrize("row_keys", [[], [1], [1, 2, 3], [1, None], [1, 1 << 63], [1, True], [1, 2.0]], ids=str)
def test_row_keys_are_one_for_each_prompt(row_keys: Any) -> None:
    with pytest.raises(ValueError, match=r"^row_keys: "):
        engine(toy_model(), 4).generate([[1], [2]], 3, row_keys)


@pytest.mark.usefixtures("any_size_may_be_asked_for")
def test_prompts_as_a_user_would_write_them(lm: hybrid.LanguageModel) -> None:
    ids = lm.tokenizer.encode("the ")
    expected = lm.generate([ids, ids], 6, seed=3)
    assert lm.generate("the ", 6, seed=3).tokens == expected.tokens[:1]
    same = [["the ", "the "], ("the ", ids), torch.tensor([ids, ids]), torch.tensor([ids, ids], dtype=torch.int32)]
    same += [np.array([ids, ids]), [torch.tensor(ids), np.array(ids, dtype=np.uint8)], [list(map(np.int64, ids))] * 2]
    same += [[[torch.tensor(i) for i in ids], tuple(ids)]]
    for prompts in same:
        result = lm.generate(prompts, 6, seed=3)
        assert result.tokens == expected.tokens
        assert all(type(token) is int for row in result.sequences for token in row)
    *_, last = lm.stream("the ", 6, seed=3)
    assert last.tokens == expected.tokens[:1]
    numbers = {"seed": np.int64(3), "block_size": np.int32(4), "top_k": torch.tensor(5), "temperature": np.float32(0.5)}
    plain = {"seed": 3, "block_size": 4, "top_k": 5, "temperature": 0.5}
    assert lm.generate([ids], typing.cast(int, np.int8(6)), **numbers).tokens == lm.generate([ids], 6, **plain).tokens
    assert lm.generate([], 6).tokens == [] and lm.generate([[]], 0).finish_reasons == ["length"]
    assert lm.nll(torch.tensor([ids]), seed=typing.cast(int, np.int64(1))).nll.equal(
        lm.nll(torch.tensor([ids]), seed=1).nll
    )


def test_why_a_text_ended_and_the_whole_of_it() -> None:
    """An end of text right at the last token asked for is `end_of_text`; one behind it in the block is not reached."""
    model = toy_model()
    run = engine(model, 4, "left_to_right", seed=1)
    whole = run.generate([[1, 2]] * 30, 8)
    assert set(whole.finish_reasons) == {"length", "end_of_text"}
    for tokens, reason, sequence in zip(whole.tokens, whole.finish_reasons, whole.sequences, strict=True):
        assert sequence == [1, 2, *tokens]
        assert (reason == "end_of_text") == (tokens[-1] == model.end_of_text)
        assert reason == "end_of_text" or len(tokens) == 8
    row = whole.finish_reasons.index("end_of_text")
    n = len(whole.tokens[row])
    for new, reason in ((n, "end_of_text"), (n - 1, "length")):
        assert n == 1 or run.generate([[1, 2]] * 30, new).finish_reasons[row] == reason
    never = engine(model, 4, "left_to_right", seed=1, stop_at_end=False).generate([[1, 2]] * 30, 12)
    assert never.finish_reasons == ["length"] * 30, "the context is full"


# ---------------------------------------------------------------------------------------------------------------------
# Options of decoders


def numeric_options() -> list[Any]:
    found = []
    for name, entry in DECODERS.items():
        hints = typing.get_type_hints(entry)
        for field in dataclasses.fields(entry):
            kinds = {int, float} & set(typing.get_args(hints[field.name]) or (hints[field.name],))
            if kinds:
                found.append(pytest.param(name, field.name, kinds.pop(), id=f"{name}-{field.name}"))
    return found


@pytest.mark.parametrize("name, option, kind", numeric_options())
def test_numeric_options_are_refused_by_name_or_work(name: str, option: str, kind: type) -> None:
    """Through every entry of the table. Not a number and infinity are never accepted, nor is -1 but where it has a
    meaning; what is accepted generates."""
    values = [float("nan"), float("inf"), -float("inf"), -1, 1e300, 10**6, HUGE, MAX_COUNT + 1, "1", True, [1]]
    means_something = {"order_seed": [-1, 10**6, MAX_COUNT + 1], "threshold": [-1] if name == "entropy" else []}
    refused: list[tuple[Any, str]] = []
    for value in values:
        spec = {"name": name, option: value}
        is_odd = isinstance(value, (str, bool, list)) or value != value or abs(value) == float("inf")
        try:
            decoder = build(DECODERS, spec, "decoder")
        except ValueError as error:
            refused.append((value, str(error)))
            continue
        assert not is_odd, spec
        assert value != -1 or value in means_something[option], spec
        if option == "steps" and name in ("mask_predict", "p2", "arpc", "remdm", "ancestral"):
            continue  # as many as were asked for, which takes long
        tokens = engine(toy_model(context_of(name)), 4, decoder, stop_at_end=False).generate([[1]], 7).tokens[0]
        assert len(tokens) == 7 and all(0 <= token < 7 for token in tokens)
    for value, message in refused:
        assert re.match(rf"decoder\.{option}: ", message) and len(message) < 300
        assert value not in means_something.get(option, [])
    built = DECODERS[name]
    for value in (float("nan"), "1", HUGE if kind is int else float("inf")):
        with pytest.raises(ValueError, match=rf"^{option}: "):  # made in Python, where nothing checks the type
            built(**{option: value})


def test_thresholds_of_probabilities_are_probabilities() -> None:
    for name in ("confidence", "margin"):
        for value in (-0.1, 1.5, 2):
            with pytest.raises(ValueError, match=rf"decoder.threshold: {float(value)} must be from 0 to 1"):
                build(DECODERS, {"name": name, "threshold": value}, "decoder")
        for value in (0, 1, 0.5):
            build(DECODERS, {"name": name, "threshold": value}, "decoder")
    build(DECODERS, {"name": "entropy", "threshold": -3}, "decoder")


def test_extreme_temperatures_that_are_allowed_are_what_they_say() -> None:
    from hybrid.decoding.sampling import TEMPERATURES

    model = toy_model()
    low, high = (engine(model, 4, temperature=t, seed=2, stop_at_end=False) for t in TEMPERATURES)
    greedy = engine(model, 4, temperature=0, seed=2, stop_at_end=False)
    assert low.generate([[1]], 12).tokens == greedy.generate([[1]], 12).tokens
    counts = torch.bincount(torch.tensor(high.generate([[]] * 300, 14).tokens).flatten(), minlength=7)
    assert counts.min() > 500  # of 600 expected


def test_warnings_are_not_raised_by_checks(lm: hybrid.LanguageModel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm.generate("the ", 2)
