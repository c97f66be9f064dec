"""What a network with a latent proposes on each canvas: the mean over its random numbers of independent tokens.

They are no draws but points of a Sobol sequence, scrambled, made normal: as many on every number of masked tokens, so
that the canvas which all texts begin with has the most. Twice as many change no figure by more than some thousandths.

Shape legend: c canvases, n canvases with equally many masks, m masked tokens of each, z points, x texts, L positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybrid.experiments.few_steps.laws import Canvases
from hybrid.model import Transformer
from hybrid.model.two_stream import two_stream_hidden

POINTS = 1 << 16
"""On all canvases of a number of masks together."""
KEPT = 1 << 10
"""Of a block whose random numbers are drawn once: fewer, since each has a law of texts. Errors of up to .015."""
ROWS = 1 << 14
"""Of a forward; bounds the memory."""


def normals(n: int, network: Transformer, length: int, seed: int) -> Tensor:
    """(n, L, k) points, the same at all positions or not, as the network has it."""
    config = network.config
    own = length if config.latent_per == "position" else 1
    sobol = torch.quasirandom.SobolEngine(own * config.latent, scramble=True, seed=seed)
    uniform = sobol.draw(n, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    return torch.special.ndtri(uniform).view(n, own, -1).expand(n, length, config.latent)


def mixture(network: Transformer, canvases: Canvases) -> Tensor:
    """J (c, x) = E_z prod over l of p(x_l | c, z)."""
    proposals = torch.zeros(len(canvases.tokens), len(canvases.texts), dtype=torch.float64)
    for some in _by_masks(canvases):
        n = max(POINTS // len(some), 1)
        for part in some.split(max(ROWS // n, 1)):
            points = torch.cat([normals(n, network, canvases.length, seed=int(number)) for number in part])
            joint = _products(network, canvases, part.repeat_interleave(n), points)
            proposals[part] = joint.view(len(part), n, -1).mean(1)
    return proposals


def kept_latent(network: Transformer, canvases: Canvases) -> list[Tensor]:
    """J (c, x) for each of some points that all canvases share, in float32: a gigabyte."""
    found = []
    for point in normals(KEPT, network, canvases.length, seed=0):
        numbers = torch.arange(len(canvases.tokens))
        found.append(_products(network, canvases, numbers, point.expand(len(numbers), -1, -1)).float())
    return found


def _by_masks(canvases: Canvases) -> list[Tensor]:
    """Numbers of the canvases with 0, 1, ... masked tokens, (n,) each."""
    counts = canvases.is_masked.sum(1)
    return [(counts == m).nonzero().squeeze(1) for m in range(canvases.length + 1)]


@torch.no_grad()
def _products(network: Transformer, canvases: Canvases, numbers: Tensor, points: Tensor) -> Tensor:
    """prod over l of p(x_l | c, z) on the canvases of some numbers (r,), each with its own z (r, L, k): (r, x)."""
    is_masked, tokens = canvases.is_masked[numbers], canvases.tokens[numbers]
    ids = tokens.masked_fill(is_masked, 0)
    hidden = two_stream_hidden(network, ids, is_masked[:, None], canvases.length, latent=points[:, None])
    known = torch.zeros(*tokens.shape, canvases.vocab, dtype=torch.float64)
    known.scatter_(-1, ids[..., None], 1.0)
    known[is_masked] = network.head(hidden).double().softmax(-1)
    total = torch.ones(len(numbers), len(canvases.texts), dtype=torch.float64)
    for place in range(canvases.length):
        total *= known[:, place, canvases.texts[:, place]]
    return total
