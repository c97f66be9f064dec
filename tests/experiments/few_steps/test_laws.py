"""Laws of few steps by enumeration, against other code and against samples."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from hybrid.decoding import GenerationConfig
from hybrid.decoding.engine import Engine
from hybrid.experiments.few_steps import causal, laws, mixtures
from hybrid.experiments.few_steps.enumerated import Chain1, Chain2, Enumerated
from hybrid.experiments.few_steps.laws import ONE_BY_ONE, Canvases, Steps
from hybrid.experiments.few_steps.methods import METHODS, predictions
from hybrid.experiments.few_steps.source import bisected, interpolated
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
    law = laws.written(canvases, canvases.product(predictions(toy.model, canvases)), laws.grid_moves(canvases, steps))
    known = toy.law if steps == ONE_BY_ONE else ancestral_law(toy.table, cell_widths(int(steps), "linear"))
    assert torch.allclose(law, known, atol=1e-12)


def test_samples_follow_the_law(toy: Toy, canvases: Canvases) -> None:
    """Chi-square of 3,000 blocks of the engine; false alarm 1e-4. The law of another number of steps is refused."""
    proposals = canvases.product(predictions(toy.model, canvases))
    counts, _ = toy.simulate({"name": "ancestral", "steps": 2}, 3000, seed=5)
    assert chi_square(counts, laws.written(canvases, proposals, laws.grid_moves(canvases, 2))) > 1e-4
    assert chi_square(counts, laws.written(canvases, proposals, laws.grid_moves(canvases, 1))) < 1e-4


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
        assert torch.allclose(laws.written(canvases, joint, laws.grid_moves(canvases, steps)), source.law, atol=1e-12)


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
    assert len(kept) == 8 and torch.allclose(kept[7].double(), plain, atol=1e-6)


def test_a_mixture_is_the_mean_over_the_latent(with_latent: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against 4,000 random draws at positions 0 and 2, on the canvas where 1 is known: five standard errors."""
    monkeypatch.setattr(mixtures, "POINTS", 1 << 14)
    monkeypatch.setattr(mixtures, "KEPT", 128)
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
    kept, fresh = mixtures.kept_latent(model, canvases), METHODS["latent"]
    of_kept = [METHODS["latent_kept"].law(kept, canvases, steps) for steps in (1, 3)]
    apart = [
        float((law - fresh.law(found, canvases, n)).abs().sum() / 2) for law, n in zip(of_kept, (1, 3), strict=True)
    ]
    assert apart[0] < 0.03 < apart[1]  # in one step there is nothing to keep
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
            law = laws.written(canvases, proposals, laws.even_moves(canvases, steps))
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


def test_figures_of_a_law() -> None:
    law, source = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.25, 0.75]).double()
    wanted = {"variation": 0.75, "nll": math.log(4) / 2, "entropy": 0.0}
    assert laws.judged(law, source, length=2) == pytest.approx(wanted)
