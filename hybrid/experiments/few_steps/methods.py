"""The methods that are compared: how the network of each is trained, and how it writes.

A method is one class in one table. Its settings are those of train.py; `forwards_per_row` says how many forwards of a
noisy text each row of a batch costs, those of a teacher included, so that all methods can be given equally many.

On an enumerated source a method says the law of what it proposes on every canvas (`look`), and from that the law of
what it writes. On others it is a decoder.

Shape legend: c canvases, x texts, L positions, V vocabulary, z draws of a latent, k numbers of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from hybrid.experiments.few_steps import causal, laws
from hybrid.experiments.few_steps.laws import Canvases, Steps
from hybrid.experiments.few_steps.mixtures import kept_latent, mixture
from hybrid.model import Transformer
from hybrid.model.two_stream import two_stream_hidden

PLAIN = "plain"
OWN = 0.5
"""Share of the forwards of a method with a start that train it; the others have trained the start."""
Spec = dict[str, Any]
"""A decoder, as a configuration has it."""


@dataclass(frozen=True)
class Method:
    """Tokens of a step are drawn independently, from a network that is trained as the settings say.

    Attributes:
        rounds: settings of each training after the other; a method with a teacher learns in each from what it was.
        batch: rows of a batch, as a share of those that a source trains plain networks on.
        start: the method whose network it starts from, which has had a share of the forwards.
        is_taught: whether that network is its teacher, too; else it learns from data alone.
    """

    settings: tuple[str, ...] = ()
    rounds: tuple[tuple[str, ...], ...] = ((),)
    forwards_per_row: float = 1.0
    batch: float = 1.0
    start: str | None = None
    is_taught: bool = True
    share: ClassVar[float] = 1.0  # of the forwards that it may have
    network: ClassVar[str | None] = None  # the method whose network it writes with, if it has none of its own
    generation: ClassVar[Mapping[str, Any]] = MappingProxyType({})  # further options of a generation

    def look(self, network: Transformer, canvases: Canvases) -> Any:
        """Ask the network, once, for all that the laws of every number of steps are computed from."""
        return canvases.product(predictions(network, canvases))

    def law(self, seen: Any, canvases: Canvases, steps: Steps) -> Tensor:
        """(x,) the law of the texts written in `steps` steps, from what `look` has seen."""
        return laws.written(canvases, seen, laws.even_moves(canvases, steps))

    def passes(self, steps: Steps, canvases: Canvases) -> float:
        """Compute the forwards of a text of one block, on average."""
        return float(len(laws.counts(steps, canvases.length)))

    def decoder(self, plain: Spec, steps: int) -> Spec:
        """Say how it writes where nothing is enumerated; `plain` is the decoder of plain texts of these steps."""
        return plain


@dataclass(frozen=True)
class Mixture(Method):
    """Independent given random numbers in MASK, which are drawn anew at every step."""

    def look(self, network: Transformer, canvases: Canvases) -> Any:
        return mixture(network, canvases)


@dataclass(frozen=True)
class Start(Method):
    """What every method with a start begins from: a plain network that has had a share of the forwards."""

    network = PLAIN
    share = 1 - OWN


class OnTimeGrid(Method):
    """The tokens of a step are those whose random times fall into one of K equal cells (`ancestral`)."""

    def law(self, seen: Any, canvases: Canvases, steps: Steps) -> Tensor:
        return laws.written(canvases, seen, laws.grid_moves(canvases, steps))

    def passes(self, steps: Steps, canvases: Canvases) -> float:
        return laws.grid_forwards(steps, canvases.length)

    def decoder(self, plain: Spec, steps: int) -> Spec:
        return {"name": "ancestral", "steps": steps}


@dataclass(frozen=True)
class PlainOnTimeGrid(OnTimeGrid):
    """Plain texts on the time grid."""

    network = PLAIN


@dataclass(frozen=True)
class MixtureOnTimeGrid(OnTimeGrid, Mixture):
    """Texts of `latent` on the time grid."""

    network = "latent"


@dataclass(frozen=True)
class Kept(Method):
    """The random numbers of a block are drawn once: what training does not promise to be right."""

    network = "latent"
    generation = MappingProxyType({"latent": "keep"})

    def look(self, network: Transformer, canvases: Canvases) -> Any:
        return kept_latent(network, canvases)

    def law(self, seen: Any, canvases: Canvases, steps: Steps) -> Tensor:
        return torch.stack([super(Kept, self).law(proposals.double(), canvases, steps) for proposals in seen]).mean(0)


@dataclass(frozen=True)
class Copula(Method):
    """Tokens of a step drawn from the left by the causal law, corrected by what is known behind (`copula`)."""

    canvas: str = "start"
    network = "causal"

    def look(self, network: Transformer, canvases: Canvases) -> Any:
        block, by_causal = predictions(network, canvases), causal.causal_predictions(network, canvases)
        return causal.copula_proposals(canvases, block, by_causal, self.canvas)

    def passes(self, steps: Steps, canvases: Canvases) -> float:
        return causal.copula_forwards(canvases, steps, self.canvas)

    def decoder(self, plain: Spec, steps: int) -> Spec:
        return {"name": "copula", "steps": steps, "canvas": self.canvas}


@dataclass(frozen=True)
class Corrector(Method):
    """The block is filled, and what the causal law finds least likely is written again (`arpc`)."""

    network = "causal"

    def look(self, network: Transformer, canvases: Canvases) -> Any:
        own = canvases.texts[..., None]
        scores = causal.causal_predictions(network, canvases).gather(-1, own)[..., 0]
        return causal.Corrected(super().look(network, canvases), scores.argsort(dim=-1, descending=True, stable=True))

    def law(self, seen: Any, canvases: Canvases, steps: Steps) -> Tensor:
        return causal.corrected_law(canvases, seen, steps)

    def passes(self, steps: Steps, canvases: Canvases) -> float:
        return causal.corrector_forwards(steps, canvases.length)

    def decoder(self, plain: Spec, steps: int) -> Spec:
        return {"name": "arpc", "steps": steps}


@dataclass(frozen=True)
class Autoregressive(Method):
    """The causal law alone, token by token."""

    network = "causal"

    def look(self, network: Transformer, canvases: Canvases) -> Any:
        own = canvases.texts[..., None]
        return causal.causal_predictions(network, canvases).gather(-1, own)[..., 0].sum(1).exp()

    def law(self, seen: Any, canvases: Canvases, steps: Steps) -> Tensor:
        return seen

    def passes(self, steps: Steps, canvases: Canvases) -> float:
        return float(canvases.length)

    def decoder(self, plain: Spec, steps: int) -> Spec:
        return {"name": "copula", "steps": 1, "alpha": 0}


LATENTS = 16
"""Draws of the random numbers over which a likelihood is averaged, where nothing else is said."""


def with_latent(per: str, latents: int, batch: float, start: str | None = None) -> Mixture:
    """Train on data, without a teacher, the likelihood of all masked tokens together."""
    objective = f"objective.name={{name: latent, latents: {latents}, share: 1.0}}"
    settings = ("model.latent=4", f"model.latent_per={per}", objective)
    return Mixture(settings, forwards_per_row=latents, batch=batch, start=start, is_taught=False)


def distilled(divergence: str) -> Method:
    """SDTT in two rounds: a step of the student stands for two of the teacher, of one token and then of two."""
    rounds = tuple((f"objective.name={{name: sdtt, divergence: {divergence}, per_step: {n}}}",) for n in (1, 2))
    return Method((), rounds, forwards_per_row=3, start=PLAIN)


def di4c(latents: int = 8) -> Mixture:
    """Learn from a step of the teacher and the student's own next one: two forwards a latent, and the teacher's."""
    settings = ("model.latent=4", "model.latent_per=position", f"objective.name={{name: di4c, latents: {latents}}}")
    return Mixture(settings, forwards_per_row=2 * latents + 1, batch=1 / latents, start=PLAIN)


METHODS: dict[str, Method] = {
    PLAIN: Method(),
    "plain_grid": PlainOnTimeGrid(),
    "start": Start(),
    "plain_started": Method(start=PLAIN, is_taught=False),
    "sdtt_forward": distilled("kl_forward"),
    "sdtt_reverse": distilled("kl_reverse"),
    "sdtt_mse": distilled("mse"),
    "sdtt_tv": distilled("tv"),
    "di4c": di4c(),
    "latent": with_latent("position", LATENTS, 1 / LATENTS),
    "latent_grid": MixtureOnTimeGrid(),
    "latent_32": with_latent("position", 2 * LATENTS, 1 / (2 * LATENTS)),
    "latent_started": with_latent("position", LATENTS, 1 / 8, start=PLAIN),
    "latent_block": with_latent("block", LATENTS, 1 / LATENTS),
    "latent_kept": Kept(),
    "causal": Method(("model.context=causal", "objective.ar_weight=1.0"), forwards_per_row=2),
    "copula": Copula(),
    "copula_drawn": Copula(canvas="drawn"),
    "arpc": Corrector(),
    "autoregressive": Autoregressive(),
}


@torch.no_grad()
def predictions(network: Transformer, canvases: Canvases) -> Tensor:
    """(c, L, V) float64 log p(x_l | canvas); a known token has all mass."""
    tokens = canvases.tokens.masked_fill(canvases.is_masked, 0)
    hidden = two_stream_hidden(network, tokens, canvases.is_masked[:, None], canvases.length)
    return canvases.with_known(network.head(hidden).double().log_softmax(-1))
