"""Tokens per forward: texts one at a time are those of their seed, numbers by hand."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
from text_figures import entropy

from hybrid.experiments import (
    forwards,
)
from hybrid.lm import LanguageModel
from hybrid.results.table import Table


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


def test_tokens_per_forward_at_batch_1(command, trained, tmp_path):
    output = tmp_path / "forwards.md"
    words = ("--samples", 2, "--new-tokens", 12, "--rows", 2, "--seeds", 0, 1, "--output", output)
    done = command("experiments.forwards", "--checkpoint", trained, "--judge", trained, "--block-size", 4, *words)
    assert done.code == 0, done.err
    assert output.with_suffix(".png").is_file() and output.with_name("forwards-2.png").is_file()
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in done.out.splitlines() if line.startswith("| 4 ")]
    rows = {line[1]: line[2:] for line in lines}
    assert len(rows) == 16
    for k in (1, 2, 4):
        assert rows[f"first_hitting:per_step={k}"][0] == f"{k:.2f} ± 0.00", "no row waits for another"
        assert rows[f"first_hitting:per_step={k}"][-1] == "-" and float(rows[f"entropy:per_step={k}"][-1]) > 0
    bounded = [float(rows[f"entropy_bounded:gamma={g}"][0].split()[0]) for g in (0.1, 0.5, 1.5, 4.0)]
    assert bounded == sorted(bounded) and bounded[-1] > bounded[0], "a looser bound reveals more at once"
    refused = command("experiments.forwards", "--checkpoint", trained, "--judge", trained, "--samples", 0)
    assert "at least" in refused.err


def test_speed_is_that_of_all_texts_together(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four tokens in half a second and eight forwards."""
    now = iter([10.0, 10.5])
    monkeypatch.setattr(forwards.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(forwards, "write", lambda *arguments: ([[1, 2, 3], [4]], 8))
    point = forwards.Point("x", 4, "y")
    forwards.add(point, lm, None, Remembering(), 2, 3, 0)  # type: ignore[arg-type]
    assert point.tokens_per_second == [8.0] and point.tokens_per_forward == [0.5]
