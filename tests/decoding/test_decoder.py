"""What the engine is given by a decoder, and how long it waits for one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from toy import toy_model

from hybrid.decoding import GenerationConfig
from hybrid.decoding.engine import Engine


@dataclass(frozen=True)
class Gives:
    """A decoder whose `select` is a function."""

    of: Callable[[Any], Any]

    def start(self, view: Any) -> None:
        return None

    def select(self, view: Any, state: Any) -> Any:
        return self.of(view)

    def __repr__(self) -> str:
        return "Gives()"


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize(
    ("of", "message"),
    [
        (lambda v: v.is_masked, r"gave a Tensor; it must be \(reveal, remask\) or \(reveal, remask, tokens\)"),
        (lambda v: (v.is_masked,), r"gave a tuple of 1; it must be \(reveal, remask\)"),
        (lambda v: (v.is_masked[0], None), r"gave torch.bool \(4,\) as reveal; it must be a tensor, torch.bool \(., 4"),
        (lambda v: (v.is_masked.long(), None), r"gave torch.int64 \(., 4\) as reveal; it must be a tensor, torch.bool"),
        (lambda v: (v.is_masked, True), r"gave a bool as remask; it must be a tensor, torch.bool \(., 4\)"),
        (lambda v: (v.is_masked, None, v.is_masked * 1.0), r"gave torch.float32 \(., 4\) as tokens; .*torch.int64"),
    ],
)
def test_a_choice_of_another_form_is_named(of: Callable[[Any], Any], message: str, rows: int) -> None:
    run = Engine(toy_model(), 14, GenerationConfig(4, Gives(of)))
    with pytest.raises(ValueError, match=rf"^decoder: select of Gives\(\) {message}"):
        run.generate([[]] * rows, 4)


def test_a_decoder_that_takes_back_all_that_it_reveals_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says how many steps it takes is given them."""
    monkeypatch.setattr("hybrid.decoding.decoder.MAX_IDLE_STEPS", 5)
    again = Gives(lambda view: (view.is_masked, view.is_masked))
    with pytest.raises(ValueError, match=r"decoder: Gives\(\) has re-masked in 10 steps of a block, .*make progress$"):
        Engine(toy_model(), 14, GenerationConfig(4, again)).generate([[]], 4)
    in_time = {"name": "mask_predict", "steps": 30}
    done = Engine(toy_model(), 14, GenerationConfig(4, in_time, stop_at_end=False)).generate([[]], 4)
    assert len(done.tokens[0]) == 4
