"""The attention that trains on a card, against the reference: forward and backward, pattern by pattern."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybrid.bench.gpu.stage import Bench, Stage
from hybrid.model.attention import Backend, Eager, select_backend
from hybrid.model.masks import TwoStream
from hybrid.model.sdpa import per_query_head
from hybrid.results.table import column
from hybrid.results.timing import wait

BATCH, HEADS, WIDTH = 2, 4, 64
LENGTH = 256


@dataclass(frozen=True)
class AgreementRow:
    """Largest differences from the reference in float64, in shares of its largest entry."""

    pattern: str = column("pattern")
    backend: str = column("backend")
    forward: float = column("forward", ".1e")
    eager_forward: float = column("of eager in the same dtype", ".1e")
    backward: float = column("backward", ".1e")
    eager_backward: float = column("of eager, backward", ".1e")
    agrees: bool = column("agrees")  # neither is more than four times that of the reference
    first: float = column("first call, s", ".1f")


@dataclass(frozen=True)
class Case:
    """A pattern, and how many heads of keys and values there are."""

    name: str
    pattern: TwoStream
    kv_heads: int = HEADS


def cases(device: torch.device, length: int, block: int) -> list[Case]:
    """Return the patterns: what training meets, what matters most first."""
    ends = torch.arange(length, device=device)
    documents = torch.stack([ends // (length // 3), ends // (length // 5)])  # of the two rows

    def of(size: int = block, n: int = length, **options) -> TwoStream:
        return TwoStream.of(n, size, device=device, **options)

    return [
        Case("block_causal, in_place", of()),
        Case("the rows that are read", of().reading()),
        Case("documents", of(documents=documents)),
        Case("causal, next_token", of(context="causal", prediction="next_token")),
        Case("a short last block", of(n=length - block // 2)),
        Case("two draws", of(draws=2)),
        Case("grouped heads", of(), HEADS // 2),
        Case("block size 1, next_token", of(1, context="causal", prediction="next_token")),
        Case("one block", of(length)),
    ]


class Agreement(Stage):
    """Attention against the reference, forward and backward"""

    seconds: ClassVar[float] = 70

    def run(self, bench: Bench) -> Iterator[AgreementRow]:
        device = bench.device
        length, block = (LENGTH, 16) if bench.is_card else (16, 4)
        dtype = torch.bfloat16 if bench.is_card else torch.float32
        attend = select_backend("auto", device, training=True)
        for case in cases(device, length, block):
            torch.manual_seed(0)
            n_q, n_k = (c.position.shape[1] for c in (case.pattern.queries, case.pattern.keys))
            q, upstream = (torch.randn(BATCH, HEADS, n_q, WIDTH, device=device, dtype=dtype) for _ in range(2))
            k, v = (torch.randn(BATCH, case.kv_heads, n_k, WIDTH, device=device, dtype=dtype) for _ in range(2))
            exact = passed(Eager(device), (q.double(), k.double(), v.double()), upstream.double(), case.pattern)
            eager = passed(Eager(device), (q, k, v), upstream, case.pattern)
            wait(device)
            started = time.perf_counter()
            ours = passed(attend, (q, k, v), upstream, case.pattern)
            wait(device)
            seconds = time.perf_counter() - started
            mine, plain = (tuple(map(error, found, exact)) for found in (ours, eager))
            forward, backward = (mine[0], plain[0]), (max(mine[1:]), max(plain[1:]))
            agrees = all(ours <= 4 * reference + 1e-6 for ours, reference in (forward, backward))
            yield AgreementRow(
                case.name, type(attend).__name__.lower(), forward=forward[0], eager_forward=forward[1],
                backward=backward[0], eager_backward=backward[1], agrees=agrees, first=seconds,
            )  # fmt: skip


def passed(attend: Backend, qkv: tuple[Tensor, ...], upstream: Tensor, pattern: TwoStream) -> tuple[Tensor, ...]:
    """Return the result of an attention, and the gradients of queries, keys and values, as a layer would have them."""
    q, k, v = (t.detach().requires_grad_() for t in qkv)
    shown = (k, v) if getattr(attend, "groups_heads", False) else tuple(per_query_head(t, q.shape[1]) for t in (k, v))
    out = attend(q, shown[0], shown[1], pattern)
    return out.detach(), *torch.autograd.grad(out, (q, k, v), upstream)


def error(found: Tensor, exact: Tensor) -> float:
    """Return the largest difference, in shares of the largest entry; infinity where something is not finite."""
    difference = ((found.double() - exact).abs().max() / exact.abs().max()).item()
    return difference if difference < torch.inf else torch.inf
