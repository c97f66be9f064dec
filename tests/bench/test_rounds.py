"""What rounds kept, counted from the states of a generation, and what they need."""

from __future__ import annotations

import pytest
import torch

from hybrid.bench.rounds import Written, acceptance_needed, kept_a_round
from hybrid.decoding.results import GenerationState


def test_what_an_acceptance_keeps_and_what_is_needed() -> None:
    """By simulation, 20,000 rounds of two to six tokens; false alarm below 1e-6."""
    draws = torch.rand(20_000, 4, generator=torch.Generator().manual_seed(0))
    kept = 2 + (draws < 0.6).long().cumprod(-1).sum(-1).double()
    assert kept_a_round(0.6, 6) == pytest.approx(float(kept.mean()), abs=5 * float(kept.std()) / 20_000**0.5)
    for length, acceptance in [(3, 0.25), (8, 0.6), (8, 1.0)]:
        assert acceptance_needed(kept_a_round(acceptance, length), length) == pytest.approx(acceptance)
    assert acceptance_needed(1.5, 8) < 1e-9 and acceptance_needed(8.01, 8) is None


def test_drafts_that_stood_are_counted_but_for_the_last_round_of_a_text() -> None:
    """At length 4 one text has rounds of 4 and 2 (two of two drafts stood, none of one), the other of 3 and 2."""

    def state(nfe: int, *spans: tuple[int, int]) -> GenerationState:
        ended = ["length" if end - first == 7 else None for first, end in spans]
        return GenerationState(nfe, False, torch.zeros(2, 12), list(spans), ended, (0, 0, 1, 0, nfe))

    written = Written()
    for _ in range(2):
        written.follow(iter([state(2, (3, 7), (0, 3)), state(4, (3, 9), (0, 5)), state(6, (3, 10), (0, 7))]), 4)
    assert (written.texts, written.tokens, written.nfe, written.rounds) == (4, 28, 12, 6)
    assert (written.stood, written.checked, list(written.kept)) == (6, 12, [0, 0, 2, 0, 12])
