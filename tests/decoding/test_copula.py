"""The copula decoder: its law, enumerated, on chains whose conditionals are exact, and what it costs."""

from __future__ import annotations

import pytest
import torch
from decoding_toy import all_texts, chi_square_alarm, engine, sample_counts
from torch import Tensor
from toy import nll_of, toy_model

from hybrid.decoding import DECODERS, View
from hybrid.decoding.copula import Copula
from hybrid.options import build

V, L = 3, 4
TEXTS = all_texts(V, L)  # (texts, L)


def chain(order: int) -> Tensor:
    """The law (texts,) of a Markov chain of this order, with kernels far from uniform."""
    generator = torch.Generator().manual_seed(order)
    law = torch.ones(len(TEXTS), dtype=torch.float64)
    for i in range(L):
        seen = min(i, order)
        kernel = (2 * torch.randn(*[V] * (seen + 1), generator=generator, dtype=torch.float64)).softmax(-1)
        law = law * kernel[tuple(TEXTS[:, i - seen : i + 1].T)]
    return law


def conditionals(law: Tensor, canvas: Tensor) -> Tensor:
    """(r, L, V) the marginal of each position given the known tokens of `canvas` (r, L)."""
    agrees = ((canvas[:, None] == TEXTS) | (canvas[:, None] == V)).all(-1)  # (r, texts)
    weight = agrees * law
    one_hot = torch.nn.functional.one_hot(TEXTS, V).double()
    return torch.einsum("rt,tlv->rlv", weight / weight.sum(1, keepdim=True), one_hot)


class Table:
    """A network that knows a law exactly, both ways, on which each row is made to draw a text of its own.

    `nats` (r,) add up what the draws cost: exp(-nats) is the probability that the decoder draws them.
    """

    def __init__(self, law: Tensor, canvas: Tensor, due: Tensor):
        self.law, self.canvas, self.due = law, canvas, due
        self.nats, self.reads = torch.zeros(len(canvas), dtype=torch.float64), []

    def read(self, canvas: Tensor, places: Tensor, causal: bool = False) -> Tensor:
        self.reads.append(causal)
        if not causal:
            return conditionals(self.law, canvas)[places].log()
        found = torch.empty(*canvas.shape, V, dtype=torch.float64)
        for i in range(L):
            found[:, i] = conditionals(self.law, canvas.clone().index_fill_(1, torch.arange(i, L), V))[:, i]
        return found[places].log()

    def sample(self, log_probs: Tensor, places: Tensor, number: int = 0) -> Tensor:
        drawn = TEXTS[places]
        self.nats[places.any(1)] -= log_probs.gather(-1, drawn[:, None])[:, 0]
        return drawn

    def step(self, decoder: Copula, step: int) -> Tensor:
        """(texts,) the probability to draw each."""
        masked, nothing = self.canvas == V, torch.zeros_like(self.canvas, dtype=torch.bool)
        view = View(
            step,
            self.canvas,
            masked,
            nothing,
            ~nothing,
            draw=lambda: self.canvas,
            forward=lambda: self.canvas,
            read=self.read,
            sample=self.sample,
            mask_token_id=V,
        )  # type: ignore[arg-type]
        decoder.select(view, self.due)
        return (-self.nats).exp()


def law_of(decoder: Copula, source: Tensor, due: list[int]) -> tuple[Tensor, list[bool]]:
    """(texts,) the law of two steps that reveal the positions whose `due` is 0, then those where it is 1."""
    steps = torch.tensor(due).expand(len(TEXTS), -1)
    first = Table(source, torch.full_like(TEXTS, V), steps)
    drawn = first.step(decoder, 0)
    last = max(i for i, step in enumerate(due) if step == 0)
    # What is drawn and not revealed is forgotten; what stands behind the last that is revealed was never drawn.
    same = (TEXTS[:, None] == TEXTS) | (steps == 1)
    counted_once = V ** (L - 1 - last)
    revealed = (same.all(-1) * drawn).sum(1) / counted_once
    second = Table(source, TEXTS.masked_fill(steps == 1, V), steps)
    return revealed * second.step(decoder, 1), first.reads + second.reads


def total_variation(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().sum() / 2)


@pytest.mark.parametrize("due", [[1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 0, 1], [1, 1, 1, 0]], ids=str)
def test_it_is_exact_where_it_must_be_and_is_not_where_it_must_not(due: list[int]) -> None:
    """With the drawn tokens on any chain; with the step's start on chains of first order. On one of second order it is
    not where two tokens of a stretch are drawn with something known behind them. Without the correction, never."""
    for order in (1, 2):
        source = chain(order)
        assert float(source.sum()) == pytest.approx(1)
        off = {c: total_variation(law_of(Copula(2, c), source, due)[0], source) for c in ("start", "drawn")}
        assert off["drawn"] < 1e-12
        together = due in ([0, 1, 1, 0], [1, 1, 0, 1], [1, 1, 1, 0])
        assert off["start"] < 1e-12 if order == 1 or not together else off["start"] > 0.01, off
        assert total_variation(law_of(Copula(2, alpha=0.0), source, due)[0], source) > 0.01


@pytest.mark.parametrize("canvas", ["start", "drawn"])
def test_half_the_correction(canvas: str) -> None:
    """Where one token is missing and all behind it are known: p(x | before) (p(x | all) / p(x | before))^alpha."""
    source, missing = chain(2), 1
    known = TEXTS.index_fill(1, torch.tensor([missing]), V)
    before = conditionals(source, known.index_fill(1, torch.arange(missing, L), V))[:, missing]
    expected = before * (conditionals(source, known)[:, missing] / before) ** 0.5
    expected = (expected / expected.sum(-1, keepdim=True)).gather(-1, TEXTS[:, [missing]])[:, 0]
    due = torch.full((len(TEXTS), L), 0)
    torch.testing.assert_close(Table(source, known, due).step(Copula(2, canvas, alpha=0.5), 0), expected)


def test_what_it_reads() -> None:
    """A causal forward a token; of the start one for the canvas and one for each stretch; of drawn tokens two each."""
    source = chain(1)
    for canvas, block_reads in (("start", 3), ("drawn", 4)):
        _, reads = law_of(Copula(2, canvas), source, [1, 0, 1, 0])
        assert (reads.count(True), reads.count(False)) == (4 + 2, block_reads)
    _, reads = law_of(Copula(2, "start"), source, [1, 1, 1, 0])
    assert (reads.count(True), reads.count(False)) == (4 + 3, 2)
    _, reads = law_of(Copula(2), source, [0, 0, 1, 1])
    assert (reads.count(True), reads.count(False)) == (2 + 2, 0), "nothing is known behind them"


def test_one_step_writes_the_causal_law() -> None:
    """Of an in_place network; chi-square of 1,000 texts, false alarm below 1e-5."""
    model = toy_model("causal", vocab=V)
    law = (-nll_of(model, TEXTS, L, "causal").nll).exp().detach()
    assert float(law.sum()) == pytest.approx(1)
    assert chi_square_alarm(sample_counts(model, {"name": "copula", "steps": 1}, L, V, L, n=1000), law) > 1e-5


def test_networks_and_options_that_do_not_suit_it() -> None:
    with pytest.raises(
        ValueError, match=r"decoder: Copula\(.*\) needs a network of prediction=next_token, or an in_place"
    ):
        engine(toy_model(), 4, "copula")
    for spec, message in [
        ({"name": "copula", "canvas": "drawm"}, "did you mean 'drawn'"),
        ({"name": "copula", "steps": 0}, "steps: 0 is too small"),
        ({"name": "copula", "alpha": -1.0}, "alpha: -1.0 is too small"),
        ({"name": "copula", "alpha": 1e300}, "alpha: 1e[+]300 is too large; it must be at most 1,000"),
        ({"name": "arpc", "kappa": "lienar"}, "did you mean 'linear'"),
        ({"name": "arpc", "steps": 10**6}, "steps: 1000000 of two forwards each take too long, .* at most 10,000"),
    ]:
        with pytest.raises(ValueError, match=message):
            build(DECODERS, spec, "decoder")
