"""What a user's own entry may lack or give that it must not: one line that names it, and what is expected."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Configure
from toy import toy_model
from training_toy import train

import hybrid
from hybrid.config.show import describe
from hybrid.data import prepare
from hybrid.data.corpora import CORPORA
from hybrid.decoding import DECODERS, GenerationConfig
from hybrid.decoding.engine import Engine
from hybrid.evaluation import Metric
from hybrid.evaluation.base import Texts
from hybrid.evaluation.comparison import measured
from hybrid.likelihoods import LIKELIHOODS, Likelihood, LikelihoodMethod
from hybrid.model import BACKENDS
from hybrid.objectives import ESTIMATORS, OBJECTIVES, Loss
from hybrid.objectives.estimators import Masking
from hybrid.runs.run import Run
from hybrid.training.metrics import read_metrics


@dataclass(frozen=True)
class Gives:
    """Any entry: each of its methods gives `value`, or what that makes of its arguments."""

    value: Any = None

    def __call__(self, *arguments: Any) -> Any:
        return self.value(*arguments) if callable(self.value) else self.value

    loss = draw = load = measure = __call__

    def identity(self) -> str:
        return "mistake"


@dataclass(frozen=True)
class Empty:
    """Has no methods."""


def gives(value: Any) -> type:
    """A table entry whose methods give `value`."""
    return dataclass(frozen=True)(
        type("Mine", (Gives,), {"__annotations__": {"value": Any}, "value": field(default_factory=lambda: value)})
    )


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (Empty, r"decoder: Empty is a class; give an instance, e\.g\. Empty\(\), or the name of an entry"),
        (Empty(), r"decoder: Empty\(\) has no method 'start'; it must have start and select"),
        ("bare", r"decoder: bare is no dataclass; write @dataclass\(frozen=True\) above it"),
    ],
)
def test_decoders(monkeypatch: pytest.MonkeyPatch, decoder: Any, message: str) -> None:
    monkeypatch.setitem(DECODERS, "bare", type("Bare", (), {}))
    with pytest.raises(ValueError, match=f"^{message}$"):
        Engine(toy_model(), 14, GenerationConfig(4, decoder))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Empty, r"objective\.name: Empty\(\) has no method 'loss'; it must have loss"),
        (gives(torch.zeros(())), r"objective\.name: loss of Mine gave a Tensor; it must be a hybrid\.objectives\.Loss"),
        (gives(Loss(torch.zeros(2))), r"objective\.name: loss of Mine gave \(2,\) as 'total'; .* of shape \(\)"),
        (
            gives(Loss(torch.zeros(()), logged={"mine": 0.0})),  # pyright: ignore
            r"objective\.name: loss of Mine gave a float as 'mine'; it must be a tensor of shape \(\)",
        ),
    ],
)
def test_objectives(
    monkeypatch: pytest.MonkeyPatch, configure: Configure, tmp_path: Path, entry: type, message: str
) -> None:
    monkeypatch.setitem(OBJECTIVES, "mine", entry)
    with pytest.raises(ValueError, match=f"^{message}"):
        train(configure(tmp_path, "objective.name=mine"))


@pytest.mark.slow
def test_an_objective_need_not_say_whether_it_is_the_elbo(
    monkeypatch: pytest.MonkeyPatch, configure: Configure, tmp_path: Path
) -> None:
    def loss(model: Any, batch: Any, noise: Any, block_size: int) -> Loss:
        return Loss(sum(p.square().sum() for p in model.parameters()))  # pyright: ignore

    monkeypatch.setitem(OBJECTIVES, "mine", gives(loss))
    folder = train(configure(tmp_path, "objective.name=mine", "trainer.steps=2", "trainer.log_every=1"))
    first, second = (record["train/loss"] for record in read_metrics(folder) if "train/loss" in record)
    assert second < first


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Empty, r"Empty\(\) has no method 'draw'; it must have draw"),
        (gives(0), r"draw of Mine gave a int; it must be a Masking\(masked, weight\)"),
        (
            gives(lambda noise, is_target, *_: Masking(is_target, is_target.double())),
            r"draw of Mine gave masked torch\.bool \(\d+, 32\) and weight \(\d+, 32\); masked must be torch\.bool "
            r"\(\d+, draws, 32\), and weight of its shape",
        ),
    ],
)
def test_estimators(
    monkeypatch: pytest.MonkeyPatch, configure: Configure, tmp_path: Path, entry: type, message: str
) -> None:
    monkeypatch.setitem(ESTIMATORS, "mine", entry)
    with pytest.raises(ValueError, match=rf"^objective\.estimator: {message}$"):
        train(configure(tmp_path, "objective.estimator=mine"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Empty, r"Empty\(\) has no method 'identity'; it must have identity and load"),
        (gives(["a text"]), r"load of Mine gave a list; it must be Documents, e\.g\. hybrid\.data\.corpora\.InMemory"),
    ],
)
def test_corpora(
    monkeypatch: pytest.MonkeyPatch, configure: Configure, tmp_path: Path, entry: type, message: str
) -> None:
    config = configure(tmp_path)
    monkeypatch.setitem(CORPORA, "mine", entry)
    config.data.corpus, config.data.cache_dir = "mine", str(tmp_path / "cache")
    with pytest.raises(ValueError, match=rf"^data\.corpus: {message}"):
        prepare(config.data)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Empty, r"mine cannot be made of a device and whether it trains \(.*\); declare the fields `device` and"),
        (lambda device, training: Empty(), r"Empty\(\) has no method '__call__'"),
    ],
)
def test_backends(
    monkeypatch: pytest.MonkeyPatch, configure: Configure, tmp_path: Path, entry: Any, message: str
) -> None:
    config = configure(tmp_path)
    monkeypatch.setitem(BACKENDS, "mine", entry)
    config.model.attention = "mine"
    with pytest.raises(ValueError, match=rf"^model\.attention: {message}"):
        _ = Run.of(config).model


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(2), r"gave a Tensor; it must be a Likelihood, e\.g\. Likelihood\.without_noise"),
        (
            Likelihood(torch.zeros(()), torch.zeros(2), torch.ones(2), "mine"),
            r"gave \(\) as 'nll'; it must be a tensor of shape \(2,\), a number for each row$",
        ),
    ],
)
def test_likelihoods(monkeypatch: pytest.MonkeyPatch, lm: hybrid.LanguageModel, given: Any, message: str) -> None:
    class Mine(LikelihoodMethod):
        def nll(self, *_: Any) -> Any:
            return given

    monkeypatch.setitem(LIKELIHOODS, "mine", dataclass(frozen=True)(Mine))
    with pytest.raises(ValueError, match=f"^method: nll of Mine {message}"):
        lm.nll(torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]]), 4, "mine")


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (3.0, "a float; it must be a dict of numbers by name"),
        ({"mine": "high"}, "'high' as 'mine'; it must be a number, NaN where there is no value"),
    ],
)
def test_metrics(numbers: Any, message: str) -> None:
    class Mine(Metric):
        columns = ()

        def measure(self, texts: Texts, reference: Texts) -> Any:
            return numbers

    with pytest.raises(ValueError, match=f"^metric Mine: measure gave {message}$"):
        measured(Mine(), Texts([], []), Texts([], []))


def test_the_help_lists_an_entry_that_is_no_dataclass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DECODERS, "bare", type("Bare", (), {"__doc__": "Have no options."}))
    assert "bare: Have no options." in describe()
