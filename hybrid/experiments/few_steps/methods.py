"""The methods that are compared: how the network of each is trained, and the law of what it proposes on a canvas.

A method is one class in one table. `settings` are those of train.py; a step trains on `rows` texts, and each of them
costs `forwards_per_row` forwards of one noisy text, those of a teacher included. So all methods can be given the same
number of forwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hybrid.experiments.few_steps import laws
from hybrid.experiments.few_steps.laws import Canvases, Steps
from hybrid.model import Transformer
from hybrid.model.two_stream import two_stream_hidden


@dataclass(frozen=True)
class Method:
    """Tokens of a step are drawn independently, from a network that is trained as the settings say.

    Attributes:
        learns_from: the method whose network it starts from, and learns from.
    """

    settings: ClassVar[tuple[str, ...]] = ()
    rows: ClassVar[int] = 256
    forwards_per_row: ClassVar[float] = 1.0
    learns_from: ClassVar[str | None] = None

    def look(self, network: Transformer, canvases: Canvases) -> Any:
        """Ask the network, once, for all that the laws of every number of steps are computed from."""
        return canvases.product(predictions(network, canvases))

    def law(self, seen: Any, canvases: Canvases, steps: Steps) -> Tensor:
        """(x,) the law of the texts written in `steps` steps, from what `look` has seen."""
        return laws.written(canvases, seen, steps)

    def passes(self, steps: Steps, length: int) -> float:
        """Compute the forwards of a text of one block, on average."""
        return laws.forwards(steps, length)


@dataclass(frozen=True)
class Plain(Method):
    """Masked diffusion, as configs/block_size/masked.yaml has it."""


METHODS: dict[str, Method] = {"plain": Plain()}
PLAIN = "plain"


@torch.no_grad()
def predictions(network: Transformer, canvases: Canvases) -> Tensor:
    """(c, L, V) float64 log p(x_l | canvas); a known token has all mass."""
    tokens = canvases.tokens.masked_fill(canvases.is_masked, 0)
    hidden = two_stream_hidden(network, tokens, canvases.is_masked[:, None], canvases.length)
    return canvases.with_known(network.head(hidden).double().log_softmax(-1))
