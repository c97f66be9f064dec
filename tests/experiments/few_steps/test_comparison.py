"""What methods of few steps cost, what their networks learn from, and how they are put side by side."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from conftest import Command

from hybrid.experiments.few_steps import enumerated
from hybrid.experiments.few_steps.comparison import compare
from hybrid.experiments.few_steps.documentation import Documentation
from hybrid.experiments.few_steps.enumerated import Chain1
from hybrid.experiments.few_steps.laws import ONE_BY_ONE, Steps
from hybrid.experiments.few_steps.methods import METHODS, PLAIN
from hybrid.experiments.few_steps.sampled import Words
from hybrid.experiments.few_steps.source import best_of
from hybrid.experiments.few_steps.stages import stages
from hybrid.experiments.few_steps.tasks import LooseSudoku, Sums
from hybrid.lm import LanguageModel
from hybrid.model import Transformer
from hybrid.objectives import cross_entropy, di4c, latent, sdtt, teacher


def test_stages_cost_what_was_asked_for() -> None:
    """A start has half, and rounds share the rest; each begins as the one before is, and most learn from it."""
    for name in METHODS:
        found = stages(name, 1200)
        assert sum(stage.forwards for stage in found) == (600 if name == "start" else 1200)
        assert [stage.start for stage in found] == [None, *(stage.name for stage in found[:-1])]
        assert all(stage.teacher == (stage.start if METHODS[name].is_taught else None) for stage in found)
    plain, first, second = stages("sdtt_reverse", 1200)
    assert (plain.forwards, first.forwards, second.forwards) == (600, 300, 300)
    assert plain.name == stages("plain", 600)[0].name  # one teacher for all
    assert first.steps(10) == 300 / 3 / 10 and (first.settings, second.settings) == METHODS["sdtt_reverse"].rounds
    assert stages("start", 1200) == [plain]
    assert stages("copula", 1200) == stages("causal", 1200)


def test_the_law_of_blocks_that_are_counted() -> None:
    source = Words("nowhere")
    law = dict(zip(source.corpus.spelling, source.corpus.chain.stationary, strict=True))
    (one, p), (two, q), *_ = law.items()
    found = source.law_of([one, one, two, "nonsense"])
    assert found["words"] == 0.75 and found["entropy"] == pytest.approx(1.5 * math.log(2) / 8)
    assert found["variation"] == pytest.approx(1 - min(0.5, p) - min(0.25, q))


def test_a_source_is_judged_better_high_or_low() -> None:
    def plain(steps: Steps, temperature: float) -> dict[str, float]:
        return {"solved": temperature, "variation": temperature}

    tried = (0.5, 0.1, 0.9)
    assert best_of(Sums("nowhere"), plain, 1, tried) == 0.9 and best_of(Chain1("nowhere"), plain, 1, tried) == 0.1


WORDS = ["--sources", "chain1", "--methods", "plain", "--forwards", 1024, "--seeds", 0, "--steps", 1]


@pytest.mark.slow
def test_the_command_trains_once(command: Command, tmp_path: Path) -> None:
    output, folder = tmp_path / "docs" / "few.md", tmp_path / "nets"
    words = [*WORDS, "--folder", folder]
    done = command("experiments.few_steps.__main__", *words, "--output", output)
    assert done.code == 0, done.err
    assert all(line in output.read_text() for line in done.out.splitlines())
    assert output.with_suffix(".png").exists()
    lines = [line for line in done.out.splitlines() if line.startswith("| plain |")]
    assert lines[-1] == "| plain | 1.00 |"  # forwards of a text
    saved = {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}
    assert len(saved) == 1
    assert command("experiments.few_steps.__main__", *words).out == done.out
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")} == saved
    (record,) = folder.rglob("record.json")
    record.write_text(record.read_text().replace('"optim.lr": 0.003', '"optim.lr": 0.3'))
    error = command("experiments.few_steps.__main__", *words).error
    assert re.search("made with optim.lr = 0.3, .* wants 0.003; choose another --folder", error), error


BAD = [
    ("--sources chain3", "--sources: 'chain3' is not one of .*chain1"),
    ("--methods plian", "--methods: 'plian' is not one of .*did you mean 'plain'"),
    ("--steps 0", "--steps: 0 is too small; it must be at least 1"),
    ("--steps two", "--steps: .*two"),
    ("--sources pydocs", "--judge: pydocs needs a run that reads its texts; give one, or leave pydocs out"),
    ("--forwards 0", "--forwards: 0 is too small; it must be at least 1"),
    ("--forwards 10", "--forwards: leaves 10 to plain-10, of which a step costs 256; raise it"),
    ("--judge runs/ar", "--judge: none of the sources has texts for it to read; leave it out, or name pydocs"),
    ("--sources pydocs --judge nowhere", "--judge: nowhere is no folder"),
    ("--seeds -1", "--seeds: -1 is too small; it must be at least 0"),
    ("--steps b", "'b' is no number of steps; give one from 1, or B for one token a step"),
]


@pytest.mark.parametrize("words, message", BAD, ids=[words for words, _ in BAD])
def test_a_wrong_option_is_one_line(words: str, message: str, command: Command) -> None:
    error = command("experiments.few_steps.__main__", *words.split()).error
    assert re.search(message, error), error


@pytest.mark.slow
@pytest.mark.parametrize("name", [PLAIN, "latent", "sdtt_reverse", "di4c", "causal"])
def test_a_training_costs_its_budget(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted where noisy texts are read, whoever reads them; the law of clean rows is charged as one more."""
    counted = 0

    def counting(read: Callable[..., Any]) -> Callable[..., Any]:
        def count(model: Transformer, tokens: torch.Tensor, masked: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal counted
            counted += len(tokens) * (masked.shape[1] + (len(args) > 2 and args[2] is not None))
            return read(model, tokens, masked, *args, **kwargs)

        return count

    for module in (cross_entropy, di4c, latent, sdtt, teacher):
        monkeypatch.setattr(module, "two_stream_hidden", counting(module.two_stream_hidden))
    monkeypatch.setattr(enumerated, "TRAINING_TEXTS", 1024)
    Chain1(str(tmp_path), forwards=8704).network(name, seed=0)
    assert counted == pytest.approx(8704, rel=0.1)


@pytest.mark.parametrize("name", ["latent_started", "di4c", "sdtt_reverse"])
def test_a_network_starts_as_the_one_before(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before: list[dict[str, torch.Tensor]] = []

    def train(model: Transformer, config: Any, split: Any, teacher: Transformer | None) -> None:
        if before:
            assert all(torch.equal(model.state_dict()[key], value) for key, value in before[-1].items())
        assert (teacher is not None) == bool(before and METHODS[name].is_taught)
        for parameter in model.parameters():
            parameter.data += 1
        before.append({key: value.clone() for key, value in model.state_dict().items()})
        if teacher is not None:
            assert all(torch.equal(value, before[-2][key]) for key, value in teacher.state_dict().items())

    monkeypatch.setattr(enumerated, "train", train)
    Chain1(str(tmp_path), forwards=8704).network(name, seed=0)
    assert len(before) == len(stages(name, 8704)) > 1


def test_plain_texts_stand_beside_at_the_same_entropy() -> None:
    class Stub(Chain1):
        def written_by(self, method: str, seed: int) -> Any:
            sharper = 0.5 if method == "latent" else 1.0
            return lambda steps, t: {"variation": t * sharper, "entropy": t * sharper, "forwards": 1.0}

    found = compare(Stub("nowhere"), [PLAIN, "latent"], [1], [0, 1])
    outcome = found["latent", 1]
    assert outcome.control_temperature == pytest.approx([0.5, 0.5]) and not outcome.temperature
    assert [control["variation"] for control in outcome.control] == pytest.approx([0.5, 0.5])
    assert found[PLAIN, 1].figures[0]["variation"] == 1.0 and not found[PLAIN, 1].control


def test_every_method_has_its_own_best_temperature_where_several_answers_are_right() -> None:
    best = {PLAIN: 0.3, "latent": 0.6}

    class Stub(LooseSudoku):
        def written_by(self, method: str, seed: int) -> Any:
            return lambda steps, t: {"solved": 1 - abs(t - best[method]), "forwards": 1.0}

    found = compare(Stub("nowhere"), [PLAIN, "latent"], [1], [0, 1])
    for name, wanted in best.items():
        outcome = found[f"{name}, at its best temperature", 1]
        assert outcome.temperature == [wanted, wanted]
        assert [figures["solved"] for figures in outcome.figures] == [1, 1]
    assert found["latent", 1].figures[0]["solved"] == pytest.approx(0.6), "at temperature 1"


def test_how_methods_write_where_nothing_is_enumerated(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    class Stub(Words):
        def network(self, method: str, seed: int) -> LanguageModel:
            return cast(LanguageModel, None)

        def judge(self, lm: LanguageModel, options: dict[str, Any]) -> dict[str, float]:
            asked.append(options)
            return {}

    for method in (PLAIN, "latent_kept", "plain_grid", "copula_drawn"):
        Stub("nowhere").written_by(method, 3)(2, 0.7)
    Stub("nowhere").written_by(PLAIN, 3)(ONE_BY_ONE, 1.0)
    first = {"decoder": {"name": "first_hitting", "steps": 2}, "temperature": 0.7, "seed": 3}
    assert asked == [
        first,
        {**first, "latent": "keep"},
        {**first, "decoder": {"name": "ancestral", "steps": 2}},
        {**first, "decoder": {"name": "copula", "steps": 2, "canvas": "drawn"}},
        {"decoder": {"name": "first_hitting", "steps": 8}, "temperature": 1.0, "seed": 3},
    ]


@pytest.mark.parametrize(
    "options", [{"temperature": 0.7}, {"latent": "keep"}, {"decoder": {"name": "copula", "steps": 2}}]
)
def test_other_samplers_have_no_likelihood(options: dict[str, Any]) -> None:
    own = {"decoder": {"name": "first_hitting", "steps": 2}, "temperature": 1.0}
    assert Documentation("nowhere").likelihoods(cast(LanguageModel, None), {**own, **options}) == {}


def test_every_solution_of_a_loose_puzzle_is_right() -> None:
    source = LooseSudoku("nowhere")
    puzzles, answers = zip(*source.documents()[:50], strict=True)
    assert all(
        p in ("0", a) for puzzle, grid in zip(puzzles, answers, strict=True) for p, a in zip(puzzle, grid, strict=True)
    )
    n_solutions = [len(source.right(puzzle)) for puzzle in puzzles]
    assert min(n_solutions) > 1  # so there is something to choose
    puzzle = puzzles[0]
    a, b, *_ = sorted(source.right(puzzle))
    wrong = a[:-1] + ("1" if a[-1] != "1" else "2")
    assert source.judged([puzzle] * 4, [a, a, b, wrong]) == {"solved": 0.75, "again": 1.0}
    assert source.judged([puzzle] * 4, [a, b, b, b]) == {"solved": 1.0, "again": 0.5}
    assert source.judged([puzzle] * 2, [wrong, a]) == {"solved": 0.5}
    ((_, known),) = source.references(1).items()
    assert 1 / max(n_solutions) < known["again"] < 0.5
