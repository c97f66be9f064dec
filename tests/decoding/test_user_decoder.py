"""A decoder of the user's own: a class and a line, nothing in hybrid/ changes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Command

import hybrid
from hybrid.decoding import DECODERS
from hybrid.options import option


@dataclass(frozen=True)
class FromBothEnds:
    """The outermost masked positions of the block, left and right at once."""

    both: bool = option(True, "reveal two positions a step")

    def start(self, view):
        return None

    def select(self, view, state):
        first, last = view.is_masked.cumsum(-1) == 1, view.is_masked.flip(-1).cumsum(-1).flip(-1) == 1
        return view.is_masked & (first | last if self.both else first), None


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DECODERS, "mine", FromBothEnds)


def test_it_runs_and_streams(trained: Path) -> None:
    lm = hybrid.load(trained)
    options = {"block_size": 4, "seed": 1, "stop_at_end": False}
    generation = lm.generate([[], [1, 2]], 8, decoder="mine", **options)
    assert generation.nfe == 6, "the second row has three blocks, the longest of two steps each"
    steps = list(lm.stream([[], [1, 2]], 8, decoder="mine", **options))
    assert steps[-1].tokens == generation.tokens and steps[-1].nfe == 6
    known = [[token != lm.mask_token_id for token in row] for row in steps[0].tokens]
    assert known == [[True, False, False, True], [True, True]]
    one = lm.generate([[]], 8, decoder={"name": "mine", "both": False}, **options)
    assert one.tokens == lm.generate([[]], 8, decoder="left_to_right", **options).tokens


def test_it_is_evaluated(command: Command, copy_of_trained: Path) -> None:
    words = ["--decoders", "mine", "mine:both=false", "--samples", 2, "--new-tokens", 8, "--draws", 1]
    done = command("evaluate", "--checkpoint", copy_of_trained, "--block-size", 4, *words)
    assert done.code == 0, done.err
    assert "mine:both=false" in done.out
    assert "FromBothEnds" not in json.dumps(json.loads((copy_of_trained / "eval.json").read_text()))


def test_its_options_are_checked(command: Command, trained: Path) -> None:
    error = command("generate.py", "--checkpoint", trained, "--decoder", "mine", "boht=1").error
    assert "did you mean 'both'?" in error
