"""Counter-based randomness: uniforms that are a function of their keys and of nothing else.

A draw keyed by (seed, purpose, row, position, step) does not depend on the batch it is made in, on the order of draws,
or on what was drawn before, so that a row gives the same text alone, in a batch, cached or not, on any device.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

# Purposes keep draws apart that share all other keys.
ORDER, TOKEN, DECIDE, COUNT, STRATUM = range(5)

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 / golden ratio, as a signed integer
_MUL1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MUL2 = 0x94D049BB133111EB - (1 << 64)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al. 2014): a bijection of 64-bit integers in which every bit matters."""
    x = (x ^ _shift(x, 30)) * _MUL1
    x = (x ^ _shift(x, 27)) * _MUL2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of signed integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def uniform(seed: int, purpose: int, *keys: Tensor | int) -> Tensor:
    """float64 uniforms in [0, 1), of the shape to which the int64 `keys` broadcast.

    53 random bits each: float32 uniforms have 24, which biases large categoricals (Zheng et al. 2409.02908, section 5).
    """
    device = next((key.device for key in keys if isinstance(key, Tensor)), None)
    state = _mix(torch.tensor(seed, dtype=torch.int64, device=device) + _GOLDEN)
    for key in (purpose, *keys):
        state = _mix(state * 3 + _GOLDEN + _mix(torch.as_tensor(key, dtype=torch.int64, device=device) + _GOLDEN))
    return _shift(state, 11).to(torch.float64) * 2.0**-53


def row_keys(rows: Sequence[Sequence[int]]) -> list[int]:
    """A key for each row that does not depend on its company: a hash of its tokens, and how many equal rows precede it."""
    seen: Counter[bytes] = Counter()
    keys = []
    for row in rows:
        content = hashlib.blake2b(b"".join(int(t).to_bytes(8, "little") for t in row), digest_size=8).digest()
        mixed = hashlib.blake2b(content + seen[content].to_bytes(8, "little"), digest_size=8).digest()
        keys.append(int.from_bytes(mixed, "little", signed=True))
        seen[content] += 1
    return keys
