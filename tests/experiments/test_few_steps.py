"""Few steps: laws by enumeration against other code and against samples, and the command."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from conftest import Command

from hybrid.experiments.few_steps import laws
from hybrid.experiments.few_steps.enumerated import Chain1, Chain2, Enumerated
from hybrid.experiments.few_steps.laws import ONE_BY_ONE, Canvases, Steps
from hybrid.experiments.few_steps.methods import predictions
from hybrid.experiments.few_steps.source import bisected, interpolated
from hybrid.experiments.reverse_process.ancestral_law import (
    LENGTH,
    VOCAB,
    Toy,
    ancestral_law,
    cell_widths,
    chi_square,
)


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy.make(seed=0)


@pytest.fixture(scope="module")
def canvases() -> Canvases:
    return Canvases(VOCAB, LENGTH)


@pytest.mark.parametrize("steps", [1, 3, ONE_BY_ONE])
def test_the_law_of_independent_proposals(toy: Toy, canvases: Canvases, steps: Steps) -> None:
    """Canvas by canvas, it is that of the recursion over masks, and of any order where tokens come one by one."""
    law = laws.written(canvases, canvases.product(predictions(toy.model, canvases)), steps)
    known = toy.law if steps == ONE_BY_ONE else ancestral_law(toy.table, cell_widths(int(steps), "linear"))
    assert torch.allclose(law, known, atol=1e-12)


def test_samples_follow_the_law(toy: Toy, canvases: Canvases) -> None:
    """Chi-square of 3,000 blocks of the engine; false alarm 1e-4. The law of another number of steps is refused."""
    proposals = canvases.product(predictions(toy.model, canvases))
    counts, _ = toy.simulate({"name": "ancestral", "steps": 2}, 3000, seed=5)
    assert chi_square(counts, laws.written(canvases, proposals, 2)) > 1e-4
    assert chi_square(counts, laws.written(canvases, proposals, 1)) < 1e-4


@pytest.mark.parametrize("chain", [Chain1, Chain2])
def test_a_perfect_network_writes_the_source_one_by_one(chain: type[Enumerated]) -> None:
    source = chain("nowhere")
    ((_, right),) = source.references(ONE_BY_ONE).items()
    ((_, at_once),) = source.references(1).items()
    entropy = source.chain.entropy(source.canvases.length) / source.canvases.length
    assert right["variation"] < 1e-12 and right["nll"] == pytest.approx(entropy) == pytest.approx(right["entropy"])
    # Drawn at once: the entropy is that of the marginals, above it by the total correlation.
    texts, law = source.canvases.texts, source.law
    marginals = torch.stack([torch.stack([law[texts[:, at] == v].sum() for v in range(3)]) for at in range(5)])
    assert at_once["entropy"] == pytest.approx(float(-(marginals * marginals.log()).sum()) / 5)
    assert at_once["entropy"] > entropy + 0.1 and at_once["forwards"] == 1


def test_a_joint_proposal_is_right_in_one_step() -> None:
    """With the source's own dependence between the tokens of a step there is no floor, at any number of steps."""
    source = Chain2("nowhere")
    canvases = source.canvases
    agrees = ((canvases.tokens[:, None] == canvases.texts) | canvases.is_masked[:, None]).all(-1)
    joint = agrees * source.law
    joint = joint / joint.sum(1, keepdim=True)
    for steps in (1, 2, ONE_BY_ONE):
        assert torch.allclose(laws.written(canvases, joint, steps), source.law, atol=1e-12)


def test_the_temperature_of_an_entropy() -> None:
    probabilities = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)

    def entropy(temperature: float) -> float:
        return laws.entropy((probabilities.log() / temperature).softmax(0))

    assert bisected(entropy, entropy(0.6), 0.02, 50) == pytest.approx(0.6, abs=1e-3)
    assert bisected(entropy, 2.0, 0.02, 50) == pytest.approx(50)  # more than ln 3: the nearest
    known = [(t, entropy(t)) for t in (0.4, 0.5, 0.6, 0.7)]
    assert interpolated(known, entropy(0.56)) == pytest.approx(0.56, abs=0.01)
    assert interpolated(known, 0.0) == 0.4 and interpolated(known, 2.0) == 0.7


WORDS = ["--sources", "chain1", "--methods", "plain", "--forwards", 1024, "--seeds", 0, "--steps", 1, "B"]


@pytest.mark.slow
def test_the_command_trains_once(command: Command, tmp_path: Path) -> None:
    output, folder = tmp_path / "docs" / "few.md", tmp_path / "nets"
    words = [*WORDS, "--folder", folder]
    done = command("experiments.few_steps.__main__", *words, "--output", output)
    assert done.code == 0, done.err
    assert all(line in output.read_text() for line in done.out.splitlines())
    assert output.with_suffix(".png").exists()
    lines = [line for line in done.out.splitlines() if line.startswith("| plain |")]
    assert lines[-1] == "| plain | 1.00 | 5.00 |"  # forwards of a text
    saved = {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}
    assert len(saved) == 1
    assert command("experiments.few_steps.__main__", *words).out == done.out
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")} == saved
    (record,) = folder.rglob("record.json")
    record.write_text(record.read_text().replace('"optim.lr": 0.003', '"optim.lr": 0.3'))
    error = command("experiments.few_steps.__main__", *words).error
    assert re.search("trained with optim.lr = 0.3, .* wants 0.003; choose another --folder", error), error


BAD = [
    ("--sources chain3", "--sources: 'chain3' is not one of .*chain1"),
    ("--methods plian", "--methods: 'plian' is not one of .*did you mean 'plain'"),
    ("--steps 0", "--steps: 0 is too small; it must be at least 1"),
    ("--steps two", "--steps: .*two"),
    ("--forwards 0", "--forwards: 0 is too small; it must be at least 1"),
]


@pytest.mark.parametrize("words, message", BAD, ids=[words for words, _ in BAD])
def test_a_wrong_option_is_one_line(words: str, message: str, command: Command) -> None:
    error = command("experiments.few_steps.__main__", *words.split()).error
    assert re.search(message, error), error


def test_figures_of_a_law() -> None:
    law, source = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.25, 0.75]).double()
    wanted = {"variation": 0.75, "nll": math.log(4) / 2, "entropy": 0.0}
    assert laws.judged(law, source, length=2) == pytest.approx(wanted)
