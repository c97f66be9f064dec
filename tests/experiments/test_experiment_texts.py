"""Texts that experiments write: each seed its own, and figures of them by hand or by `LanguageModel`."""

from __future__ import annotations

import argparse
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from text_figures import entropy, options, per_token

from hybrid.data.batches import PackedTokens
from hybrid.decoding.engine import Generation
from hybrid.evaluation.answers import Answers
from hybrid.experiments import (
    decoders,
    discretisation,
    forwards,
    numerics,
    solving,
)
from hybrid.experiments.measuring.subject import Subject
from hybrid.experiments.reverse_process import step_by_step
from hybrid.experiments.reverse_process.joint_sampler import SAMPLERS
from hybrid.lm import LanguageModel
from hybrid.results.table import Table


def test_every_seed_writes_texts_of_its_own(lm: LanguageModel, split: PackedTokens) -> None:
    """The figures of each seed are those of the texts that the model writes with it."""
    arguments = options(decoders=["first_hitting", "margin"], block_size=4, new_tokens=16, samples=4, rows=2)
    lines = decoders.compare(lm, None, split, options(**vars(arguments), seeds=[0, 3, 11]))
    assert list(lines) == ["(real text)", "first_hitting", "margin"]
    for name in ("first_hitting", "margin"):
        texts = [lm.generate([[]] * 4, 16, 4, name, seed=seed, stop_at_end=False).tokens for seed in (0, 3, 11)]
        assert [line["entropy"] for line in lines[name]] == pytest.approx([entropy(rows) for rows in texts])
        pairs = [[pair for row in rows for pair in itertools.pairwise(row)] for rows in texts]
        assert [line["distinct_2"] for line in lines[name]] == [len(set(p)) / len(p) for p in pairs]
        assert len({line["entropy"] for line in lines[name]}) == 3
    policy = per_token(lm, split.rows(range(2)).tokens, 4, "policy", decoder="margin")
    assert [line["policy_nats_per_token"] for line in lines["margin"]] == pytest.approx([policy] * 3)


def test_columns_of_decoders() -> None:
    """Errors where seeds differ; of a speed none; a dash where nothing is known."""
    made = {"nfe_per_token": 0.5, "entropy": 2.0, "distinct_2": 0.1, "repetition": 0.2, "self_bleu": 0.3}
    one = [
        {**made, "tokens_per_second": 1000.0, "gen_ppl": 10.0},
        {**made, "tokens_per_second": 3000.0, "gen_ppl": 14.0},
    ]
    table = decoders.table({"b": one, "a": [made]})
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.cells]
    assert [row["decoder"] for row in rows] == ["b", "a"], "as they were asked for"
    assert rows[0]["gen-ppl"] == "12.00 ± 2.00" and rows[0]["tokens/s"] == "2,000"
    shown = [rows[0][name] for name in ("forwards per token", "entropy", "distinct-2", "repetition", "self-BLEU")]
    assert (
        shown == ["0.500", "2.000", "0.100", "0.200", "0.300"] and rows[1]["gen-ppl"] is rows[1]["policy NLL"] is None
    )


class Remembering:
    """A judge that remembers what it has read, and finds it as good as it is many."""

    def __init__(self) -> None:
        self.texts: list[list[str]] = []

    def read(self, texts: list[str]) -> Any:
        self.texts.append(texts)
        return argparse.Namespace(gen_ppl=float(len(texts)))


def test_texts_one_at_a_time_are_those_of_their_seed(lm: LanguageModel) -> None:
    judge, decoder = Remembering(), {"name": "first_hitting", "per_step": 2}
    point = forwards.Point("at random", 4, "first_hitting")
    for seed in (0, 5):
        forwards.add(point, lm, decoder, judge, 3, 12, seed)  # type: ignore[arg-type]
    together = [
        lm.engine(4, decoder, seed=seed, stop_at_end=False).generate([[]] * 3, 12, row_keys=[0, 1, 2]).tokens
        for seed in (0, 5)
    ]
    assert judge.texts == [[lm.tokenizer.decode(row) for row in rows] for rows in together]
    assert len({text for texts in judge.texts for text in texts}) == 6
    assert point.entropy == pytest.approx([entropy(rows) for rows in together])
    assert point.tokens_per_forward == [2.0, 2.0] and point.gen_ppl == [3.0, 3.0]


def test_columns_of_forwards() -> None:
    point = forwards.Point("x", 8, "entropy", [1.0, 3.0], [100.0, 300.0], [2.0, 2.2], [10.0, 30.0], 2.5)
    other = forwards.Point("x", 4, "margin", [1.0], [5.0], [2.0], [3.0])
    table = Table([point, other])
    assert [list(row) for row in table.cells] == [
        [8, "entropy", "2.00 ± 1.00", "200", "2.100 ± 0.100", "20.00 ± 10.00", "2.500"],
        [4, "margin", "1.00", "5", "2.000", "3.00", None],
    ]


def test_texts_of_a_grid_are_those_of_their_seeds(lm: LanguageModel) -> None:
    """Row r of seed s has the seed s R + r, so that no two texts share one."""
    arguments = options(seeds=[0, 2], rows=3, schedules=["linear"], steps=[2])
    results = discretisation.text_results(Subject(lm, 4, 10), arguments)
    for (schedule, steps), measured in results.items():
        decoder = "first_hitting" if schedule is None else {"name": "ancestral", "steps": steps, "schedule": schedule}
        texts = [
            [lm.generate([[]], 10, 4, decoder, seed=3 * seed + r, stop_at_end=False) for r in range(3)]
            for seed in (0, 2)
        ]
        rows = [[text.tokens[0] for text in of_seed] for of_seed in texts]
        assert measured.entropy == pytest.approx([entropy(of_seed) for of_seed in rows])
        assert measured.forwards == pytest.approx([sum(text.nfe for text in of_seed) / 30 for of_seed in texts])
        bounds = [per_token(lm, torch.tensor(of_seed), 4, "bound", draws=8) for of_seed in rows]
        assert measured.bound == pytest.approx(bounds)
    assert list(results) == [("linear", 2), (None, None)]


def test_times_of_texts_are_per_token(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three texts of ten tokens, written one by one: the median of 1, 2 and 5 seconds."""
    seconds = itertools.cycle([1.0, 5.0, 2.0])

    def generate(*arguments: Any, **more: Any) -> Generation:
        return Generation([[1] * 10], nfe=5, seconds=next(seconds))

    subject = Subject(SimpleNamespace(generate=generate, config=lm.config), 4, 10)  # type: ignore[arg-type]
    monkeypatch.setattr(Subject, "nats", lambda self, tokens: 2.5)
    lm.generate([[]], 1)
    next(seconds), next(seconds)
    arguments = options(seeds=[0], rows=3, schedules=["linear"], steps=[2])
    for measured in discretisation.text_results(subject, arguments).values():
        assert measured.milliseconds == [200.0] and measured.forwards == [0.5] and measured.bound == [2.5]
    now = iter([10.0, 10.5])
    monkeypatch.setattr(forwards.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(forwards, "write", lambda *arguments: ([[1, 2, 3], [4]], 8))
    point = forwards.Point("x", 4, "y")
    forwards.add(point, lm, None, Remembering(), 2, 3, 0)  # type: ignore[arg-type]
    assert point.tokens_per_second == [8.0] and point.tokens_per_forward == [0.5]


def test_texts_of_samplers_are_those_of_their_seeds(lm: LanguageModel) -> None:
    """The bound is at the block size at which they were written, the exact likelihood at 1."""
    subject = Subject(lm, 4, 10)
    results = numerics.text_results(subject, options(seeds=[0, 3], rows=2, steps=[5]))
    for name, sampler in SAMPLERS.items():
        texts = [step_by_step.generate(lm.model, sampler, 2, 10, 4, 5, seed) for seed in (0, 3)]
        (found,) = (measured for measured in results if measured.sampler == name)
        assert found.entropy == pytest.approx([entropy(t.tokens.tolist()) for t in texts])
        assert found.bound == pytest.approx([per_token(lm, t.tokens, 4, "bound", draws=8) for t in texts])
        assert found.exact == pytest.approx([per_token(lm, t.tokens, 1, "exact") for t in texts])
        assert found.forwards == [t.forwards / 10 for t in texts] and found.bound[0] != found.bound[1]


def test_puzzles_are_answered_with_the_seed_and_the_temperature_that_are_asked_for(
    lm: LanguageModel, split: PackedTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def score(engine: Any, split: Any, rows: int, batch_rows: int) -> Answers:
        asked.append((engine.block_size, engine.config.temperature, engine.config.seed, rows, batch_rows))
        return Answers(0.5, 0.1, 0.5, 10, 4, 100, 1.0)

    monkeypatch.setattr("hybrid.evaluation.answers.score", score)
    monkeypatch.setattr("hybrid.experiments.measuring.subject.load_runs", lambda runs, device: [lm])
    arguments = options(device="cpu", block_size=[4, 1], temperature=0.7, seed=5, rows=6, batch_rows=3)
    group = solving.solve(["x"], {"margin": "margin"}, arguments)
    assert asked == [(4, 0.7, 5, 6, 3), (1, 0.7, 5, 6, 3)] and list(group.answers) == [("margin", 4), ("margin", 1)]
