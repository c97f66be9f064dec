"""The table of metrics: what every entry gives, and what it needs."""

from __future__ import annotations

import builtins
import dataclasses
from typing import Any

import numpy as np
import pytest

from hybrid.evaluation import METRICS, Metric, Reading, Texts
from hybrid.evaluation.diversity import distinct, entropy, repetition, self_bleu
from hybrid.evaluation.results import DecoderResult, metrics_for, table


def reading_of(n: int) -> Reading:
    """What a model says of n texts of three tokens and six bytes."""
    rng = np.random.default_rng(n)
    nats, ones = rng.uniform(1, 5, n), np.ones(n, np.int64)
    return Reading(nats, 0.1 * nats, 3 * ones, 6 * ones, rng.standard_normal((n, 5)), np.zeros(n, bool))


def texts_of(n: int) -> Texts:
    rows = [[i % 7, (i * i) % 5, 3, 1, 2, 3] for i in range(n)]
    return Texts(rows, [" ".join("abcdefg"[token] for token in row) for row in rows], reading_of(n))


@pytest.mark.parametrize("name", METRICS)
def test_the_contract_of_a_metric(name: str) -> None:
    """Frozen, with options that have defaults; its numbers hold every column that it prints, whatever it needs."""
    metric = METRICS[name]()
    assert isinstance(metric, Metric) and metric.__doc__
    assert dataclasses.is_dataclass(metric) and metric.__dataclass_params__.frozen  # type: ignore[attr-defined]
    metric.check()
    texts, real = texts_of(24), texts_of(30)
    found = metric.measure(texts, real)
    assert {column.key for column in metric.columns} <= found.keys()
    assert all(isinstance(value, (int, float)) for value in found.values())
    if not metric.needs_evaluation_model:
        assert metric.measure(dataclasses.replace(texts, reading=None), Texts([], [])) == found
    heads = table([DecoderResult("margin", found, 4)]).splitlines()[0].split()
    assert {column.heading for column in metric.columns} <= set(heads)


def test_keys_and_headings_are_told_apart() -> None:
    texts, keys, heads = texts_of(24), [], []
    for metric in metrics_for(object()):  # type: ignore[arg-type]
        keys += metric.measure(texts, texts)
        heads += [column.heading for column in metric.columns]
    assert len(set(keys)) == len(keys) and len(set(heads)) == len(heads)


def test_every_metric_gives_the_numbers_of_its_function() -> None:
    rows, words = [[1, 2, 3, 1, 2, 3], [4, 5, 6, 7, 8, 9]], ["a b c a b c", "d e f g h i"]
    found: dict[str, float] = {}
    for metric in metrics_for(None):
        found |= metric.measure(Texts(rows, words), Texts([], []))
    assert found == {
        "entropy": entropy(rows), "distinct_1": distinct(rows, 1), "distinct_2": distinct(rows, 2),
        "distinct_3": distinct(rows, 3), "repetition": repetition(rows, 4), "self_bleu": self_bleu(words),
    }  # fmt: skip


@pytest.mark.parametrize("library, name", [("sacrebleu", "self_bleu"), ("sklearn", "mauve_like")])
def test_a_library_that_is_missing(library: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any, **options: Any) -> Any:
        if name.split(".")[0] == library:
            raise ImportError(name)
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    metric = METRICS[name]()
    for use in (metric.check, lambda: metric.measure(texts_of(24), texts_of(24))):
        with pytest.raises(ValueError, match=r"is not installed; pip install 'hybrid\[quality\]'"):
            use()
