"""Proposals: distributions of how many tokens of a block are masked."""

from __future__ import annotations

import pytest

from hybrid.objectives.proposals import Explicit, Power, Uniform


def test_proposals_by_hand():
    assert Uniform().probabilities(4, 8).tolist() == [0, 0.25, 0.25, 0.25, 0.25]
    assert Power(2.0).probabilities(3, 3).tolist() == pytest.approx([0, 1 / 14, 4 / 14, 9 / 14])
    weights = Explicit([1.0, 5.0, 2.0, 8.0])
    assert weights.probabilities(4, 4).tolist() == pytest.approx([0, 1 / 16, 5 / 16, 2 / 16, 8 / 16])
    assert weights.probabilities(2, 4).tolist() == pytest.approx([0, 1 / 6, 5 / 6]), "the first of them"
    assert Uniform().probabilities(0, 4).tolist() == [1], "nothing to mask"
