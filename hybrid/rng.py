"""Counter-based randomness: uniforms that are a function of their keys and of nothing else.

A draw keyed by (seed, purpose, row, position, step) does not depend on the batch it is made in, on the order of draws,
or on what was drawn before, so that a row gives the same text alone, in a batch, cached or not. The uniforms are the
same on any device. On a GPU the probabilities that they meet depend on the size of a batch, by rounding, and so may a
text.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

# Purposes keep draws apart that share all other keys; purpose + n FURTHER is the n-th further draw of the same kind.
ORDER, TOKEN, DECIDE, COUNT, STRATUM, LATENT, GUMBEL, DRAFT, ACCEPT = range(9)
FURTHER = 16

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio
_MUL1, _MUL2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _mix(x: Tensor | int) -> Tensor | int:
    """Finalise as SplitMix64 does (Steele et al. 2014): a bijection of 64-bit integers in which every bit matters."""
    x = _times(x ^ _shift(x, 30), _MUL1)
    x = _times(x ^ _shift(x, 27), _MUL2)
    return x ^ _shift(x, 31)


def _times(x: Tensor | int, factor: int) -> Tensor | int:
    return (x * factor) & _MASK if isinstance(x, int) else x * _signed(factor)


def _plus(x: Tensor | int, term: Tensor | int) -> Tensor | int:
    if isinstance(x, int) and isinstance(term, int):
        return (x + term) & _MASK
    return (_signed(x) if isinstance(x, int) else x) + (_signed(term) if isinstance(term, int) else term)


def _shift(x: Tensor | int, bits: int) -> Tensor | int:
    """Logical right shift, also of torch's signed integers."""
    return x >> bits if isinstance(x, int) else (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    """Read the same 64 bits as a signed integer."""
    return x - (1 << 64) if x >> 63 else x


def uniform(seed: int, purpose: int, *keys: Tensor | int) -> Tensor:
    """float64 uniforms in [0, 1), of the shape to which the int64 `keys` broadcast.

    53 random bits each: float32 uniforms have 24, which biases large categoricals (Zheng et al. 2409.02908, section 5).
    Keys that are plain integers are mixed as such, which costs a small draw much less than tensors of one element.
    """
    state: Tensor | int = _mix(_plus(seed & _MASK, _GOLDEN))
    for key in (purpose, *keys):
        if isinstance(key, int):
            key &= _MASK
        state = _mix(_plus(_times(state, 3), _plus(_mix(_plus(key, _GOLDEN)), _GOLDEN)))
    bits = _shift(torch.tensor(_signed(state)) if isinstance(state, int) else state, 11)
    assert isinstance(bits, Tensor)
    return bits.to(torch.float64) * 2.0**-53


def categorical(logits: Tensor, uniform: Tensor) -> Tensor:
    """(m, V) float64 logits and (m,) float64 uniforms -> (m,) ids of law softmax(logits), by inverting it."""
    cumulative = logits.softmax(-1).cumsum(-1)
    target = uniform[..., None] * cumulative[..., -1:]  # rounding may leave the last sum below 1
    # The first id whose cumulative mass exceeds the target; an id of mass 0 never is.
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def normal(seed: int, purpose: int, *keys: Tensor | int) -> Tensor:
    """float64 standard normals, each the quantile of its `uniform`; the least of these, 0, counts as half a step."""
    return torch.special.ndtri(uniform(seed, purpose, *keys).clamp(min=2.0**-54))


def row_keys(rows: Sequence[Sequence[int]]) -> list[int]:
    """Keys of rows that do not depend on their company: a hash of the tokens, and how many equal rows precede."""
    seen: Counter[bytes] = Counter()
    keys = []
    for row in rows:
        content = hashlib.blake2b(b"".join(int(t).to_bytes(8, "little") for t in row), digest_size=8).digest()
        mixed = hashlib.blake2b(content + seen[content].to_bytes(8, "little"), digest_size=8).digest()
        keys.append(int.from_bytes(mixed, "little", signed=True))
        seen[content] += 1
    return keys
