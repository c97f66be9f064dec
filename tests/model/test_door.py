"""The door for an attention backend: one class in BACKENDS, nothing else edited."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from conftest import Command, Configure

import hybrid
from hybrid.model import BACKENDS
from hybrid.runs.run import Run


@dataclass(frozen=True)
class Float64:
    """The reference in float64, to see what rounding does to a result."""

    device: torch.device = torch.device("cpu")
    training: bool = True

    def __call__(self, q, k, v, pattern):
        scores = q.double() @ k.double().transpose(-1, -2) * q.shape[-1] ** -0.5
        scores = scores.masked_fill(~pattern.dense()[:, None], -torch.inf)
        return (scores.softmax(-1) @ v.double()).to(v.dtype)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "float64", Float64)


def test_a_backend_of_ones_own_trains_generates_and_is_listed(configure: Configure, tmp_path, command: Command) -> None:
    losses, texts = {}, {}
    for name in ("eager", "float64"):
        run = Run.of(configure(tmp_path, f"run.name={name}", f"model.attention={name}"))
        assert type(run.model.attend) is BACKENDS[name]
        run.open()
        run.train()
        lm = hybrid.load(run.folder)
        tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])
        losses[name] = float(lm.nll(tokens, draws="all").nll)
        texts[name] = lm.generate([[1, 2]], 8).tokens
    assert losses["float64"] == pytest.approx(losses["eager"], rel=1e-4)
    assert texts["float64"] == texts["eager"]
    assert "float64" in command("train.py", "--help").out


def test_its_name_is_suggested_when_it_is_misspelt(configure: Configure, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"model\.attention: 'flot64'.*float64"):
        configure(tmp_path, "model.attention=flot64")
