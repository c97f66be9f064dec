"""Variants timed in turns."""

from __future__ import annotations

import torch

from hybrid.results.timing import interleave


def test_variants_take_turns_and_the_first_two_are_not_counted() -> None:
    now, calls = 0.0, []

    def took(name: str, seconds: list[float]):
        def run() -> None:
            nonlocal now
            calls.append(name)
            now += seconds[calls.count(name) - 1]

        return run

    variants = {"a": took("a", [90, 80, 1, 5, 2]), "b": took("b", [70, 60, 10, 30, 20])}
    timings = interleave(variants, 3, torch.device("cpu"), clock=lambda: now)
    assert calls == ["a", "b"] * 5
    assert timings["a"].seconds == [1, 5, 2] and timings["b"].seconds == [10, 30, 20]
    assert timings["a"].median == 2 and timings["a"].min_max == "1000.0-5000.0"
