"""Few steps: laws by enumeration against other code and against samples, and the command."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command

from hybrid.decoding import GenerationConfig
from hybrid.decoding.engine import Engine
from hybrid.experiments.few_steps import causal, laws, mixtures
from hybrid.experiments.few_steps.enumerated import Chain1, Chain2, Enumerated
from hybrid.experiments.few_steps.laws import ONE_BY_ONE, Canvases, Steps
from hybrid.experiments.few_steps.methods import METHODS, predictions
from hybrid.experiments.few_steps.sampled import Words
from hybrid.experiments.few_steps.source import best_of, bisected, interpolated
from hybrid.experiments.few_steps.stages import stages
from hybrid.experiments.few_steps.tasks import LooseSudoku, Sums
from hybrid.experiments.reverse_process.ancestral_law import (
    LENGTH,
    VOCAB,
    Toy,
    ancestral_law,
    cell_widths,
    chi_square,
)
from hybrid.model import ModelConfig, Transformer
from hybrid.model.attention import SDPA
from hybrid.model.two_stream import two_stream_hidden


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy.make(seed=0)


@pytest.fixture(scope="module")
def canvases() -> Canvases:
    return Canvases(VOCAB, LENGTH)


@pytest.mark.parametrize("steps", [1, 3, ONE_BY_ONE])
def test_the_law_of_independent_proposals(toy: Toy, canvases: Canvases, steps: Steps) -> None:
    """Canvas by canvas, it is that of the recursion over masks, and of any order where tokens come one by one."""
    law = laws.written(canvases, canvases.product(predictions(toy.model, canvases)), laws.moves(canvases, steps))
    known = toy.law if steps == ONE_BY_ONE else ancestral_law(toy.table, cell_widths(int(steps), "linear"))
    assert torch.allclose(law, known, atol=1e-12)


def test_samples_follow_the_law(toy: Toy, canvases: Canvases) -> None:
    """Chi-square of 3,000 blocks of the engine; false alarm 1e-4. The law of another number of steps is refused."""
    proposals = canvases.product(predictions(toy.model, canvases))
    counts, _ = toy.simulate({"name": "ancestral", "steps": 2}, 3000, seed=5)
    assert chi_square(counts, laws.written(canvases, proposals, laws.moves(canvases, 2))) > 1e-4
    assert chi_square(counts, laws.written(canvases, proposals, laws.moves(canvases, 1))) < 1e-4


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
        assert torch.allclose(laws.written(canvases, joint, laws.moves(canvases, steps)), source.law, atol=1e-12)


@pytest.fixture(scope="module")
def with_latent() -> Transformer:
    config = ModelConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=16, latent=2, latent_per="block")
    torch.manual_seed(0)
    model = Transformer(config, 2, 1).eval()
    model.attend = SDPA()
    return model.requires_grad_(False)


def test_a_latent_of_no_weight_changes_nothing(with_latent: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixtures, "POINTS", 64)
    monkeypatch.setattr(mixtures, "KEPT", 8)
    canvases = Canvases(2, 3)
    plain = canvases.product(predictions(with_latent, canvases))
    assert torch.allclose(mixtures.mixture(with_latent, canvases), plain, atol=1e-6)
    kept = mixtures.kept_latent(with_latent, canvases)
    assert len(kept) == 8 and torch.allclose(kept[7], plain, atol=1e-6)


def test_a_mixture_is_the_mean_over_the_latent(with_latent: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against 4,000 random draws at positions 0 and 2, on the canvas where 1 is known: five standard errors."""
    monkeypatch.setattr(mixtures, "POINTS", 1 << 14)
    canvases = Canvases(2, 3)
    model = copy.deepcopy(with_latent)
    assert model.latent_weight is not None and model.head_weight is not None
    model.latent_weight.normal_()
    model.head_weight.mul_(100)
    found = mixtures.mixture(model, canvases)
    assert torch.allclose(found.sum(1), torch.ones(len(found), dtype=torch.float64))
    masked = torch.tensor([[[True, False, True]]]).expand(4000, -1, -1)
    tokens = torch.tensor([0, 1, 0]).expand(4000, -1)
    hidden = two_stream_hidden(model, tokens, masked, 3, latent=torch.randn(4000, 1, 1, 2).expand(-1, -1, 3, -1))
    first, last = model.head(hidden).double().softmax(-1).view(4000, 2, 2).unbind(1)
    each = torch.einsum("ra,rb->rab", first, last).flatten(1)  # 010, 011, 110, 111
    error = each.std(0) / 4000**0.5
    canvas = int((torch.tensor([2, 1, 2]) * torch.tensor([9, 3, 1])).sum())
    assert ((found[canvas][[2, 3, 6, 7]] - each.mean(0)).abs() < 5 * error).all()
    independent = each.mean(0).view(2, 2).sum(1)[:, None] * each.mean(0).view(2, 2).sum(0)
    assert (independent.flatten() - each.mean(0)).abs().max() > 10 * error.max()  # it is another law than that


@pytest.mark.parametrize("chain", [Chain1, Chain2])
def test_where_the_copula_is_exact(chain: type[Enumerated]) -> None:
    """With perfect laws: always where it sees the tokens just drawn, else on a chain of first order, or in one step."""
    source = chain("nowhere")
    canvases = source.canvases
    block = laws.conditionals(canvases, source.law)
    before = [(canvases.texts * 4 ** torch.arange(4, -1, -1))[:, :at].sum(1) + 4 ** (5 - at) - 1 for at in range(5)]
    by_causal = torch.stack([block[canvas, at] for at, canvas in enumerate(before)], dim=1)
    for canvas in ("start", "drawn"):
        proposals = causal.copula_proposals(canvases, block, by_causal, canvas)
        for steps in (1, 2, ONE_BY_ONE):
            law = laws.written(canvases, proposals, causal.even_moves(canvases, steps))
            is_exact = laws.judged(law, source.law, 5)["variation"] < 1e-12
            assert is_exact == (canvas == "drawn" or steps == 1 or chain is Chain1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, decoder",
    [
        ("copula", {"name": "copula", "steps": 2}),
        ("copula_drawn", {"name": "copula", "steps": 2, "canvas": "drawn"}),
        ("arpc", {"name": "arpc", "steps": 3}),
    ],
)
def test_decoders_follow_the_laws_computed_for_them(name: str, decoder: dict[str, Any]) -> None:
    """Chi-square of 1,000 blocks; false alarm 1e-4. Forwards: of 12 blocks one by one, four standard errors.

    In the first block of a text a forward of MASK alone predicts the first token: one more.
    """
    config = ModelConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=16, context="causal")
    torch.manual_seed(0)
    model = Transformer(config, 2, 1).double().eval().requires_grad_(False)
    model.attend = SDPA()
    model.embedding.weight.mul_(30)
    assert model.head_weight is not None
    model.head_weight.mul_(20)
    canvases, method, k = Canvases(2, 3), METHODS[name], decoder["steps"]
    law = method.law(method.look(model, canvases), canvases, k)

    def engine(seed: int) -> Engine:
        return Engine(model, 3, GenerationConfig(3, decoder, seed=seed, stop_at_end=False))

    texts = torch.tensor(engine(1).generate([[]] * 1000, 3).tokens)
    counts = torch.bincount((texts * torch.tensor([4, 2, 1])).sum(1), minlength=8)
    plain = METHODS["causal"].law(METHODS["causal"].look(model, canvases), canvases, k)
    assert chi_square(counts, law) > 1e-4 > chi_square(counts, plain)
    forwards = torch.tensor([float(engine(seed).generate([[]], 3).nfe) for seed in range(12)])
    assert abs(forwards.mean() - 1 - method.passes(k, canvases)) <= 4 * forwards.std() / 12**0.5


def test_the_temperature_of_an_entropy() -> None:
    probabilities = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)

    def entropy(temperature: float) -> float:
        return laws.entropy((probabilities.log() / temperature).softmax(0))

    assert bisected(entropy, entropy(0.6), 0.02, 50) == pytest.approx(0.6, abs=1e-3)
    assert bisected(entropy, 2.0, 0.02, 50) == pytest.approx(50)  # more than ln 3: the nearest
    known = [(t, entropy(t)) for t in (0.4, 0.5, 0.6, 0.7)]
    assert interpolated(known, entropy(0.56)) == pytest.approx(0.56, abs=0.01)
    assert interpolated(known, 0.0) == 0.4 and interpolated(known, 2.0) == 0.7


def test_stages_cost_what_was_asked_for() -> None:
    """A start has half, and rounds share the rest; each begins as the one before is, and most learn from it."""
    for name in METHODS:
        found = stages(name, 1200)
        assert sum(stage.forwards for stage in found) == 1200
        assert [stage.start for stage in found] == [None, *(stage.name for stage in found[:-1])]
        assert all(stage.teacher == (None if name == "latent_started" else stage.start) for stage in found)
    plain, first, second = stages("sdtt_reverse", 1200)
    assert (plain.forwards, first.forwards, second.forwards) == (600, 300, 300)
    assert plain.name == stages("plain", 600)[0].name  # one teacher for all
    assert first.steps(10) == 300 / 3 / 10 and (first.settings, second.settings) == METHODS["sdtt_reverse"].rounds
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
]


@pytest.mark.parametrize("words, message", BAD, ids=[words for words, _ in BAD])
def test_a_wrong_option_is_one_line(words: str, message: str, command: Command) -> None:
    error = command("experiments.few_steps.__main__", *words.split()).error
    assert re.search(message, error), error


def test_figures_of_a_law() -> None:
    law, source = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.25, 0.75]).double()
    wanted = {"variation": 0.75, "nll": math.log(4) / 2, "entropy": 0.0}
    assert laws.judged(law, source, length=2) == pytest.approx(wanted)


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
