"""Parts of a training step by themselves: attention backends, the head, and what happens before the network runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid.bench.baselines import Causal, Dense, Straightforward
from hybrid.bench.cost import count_flops, countable
from hybrid.bench.training import AUTOREGRESSIVE, Setting, make_step, rounded
from hybrid.data.batches import PackedTokens, batch_rows
from hybrid.data.packing import Counts
from hybrid.device import precision_context, resolve_device, resolve_precision
from hybrid.model.attention import BACKENDS, Backend
from hybrid.model.kernels.cross_entropy import weighted_cross_entropy
from hybrid.model.masks import TwoStream
from hybrid.objectives.estimators import Count
from hybrid.objectives.noise import NoiseKeys
from hybrid.results.table import column
from hybrid.results.timing import interleave


@dataclass(frozen=True)
class AttentionRow:
    """Attention of one layer by one backend, forward and backward."""

    attention: str = column("attention")
    ms: float = column("ms", rounded(2))
    min_max: str = column("min-max")
    of_dense: float = column("times as fast as dense", rounded(2))
    pairs: str = column("queries x keys")
    allowed: float = column("of these allowed", rounded(3))
    gflops: float = column("GFLOP", rounded(2))


def attention(setting: Setting, repeats: int) -> Iterator[AttentionRow]:
    """Time one layer's attention, not its last, by every backend that trains on this device."""
    device = resolve_device(setting.device)
    bf16 = resolve_precision(setting.precision, device) == "bf16"
    dtype = torch.bfloat16 if bf16 else torch.float32
    N, B = setting.seq_len, setting.block_size
    causal, dense = TwoStream.of(N, 1, "causal", "next_token", device=device), Straightforward.of(N, B, device=device)
    pattern = TwoStream.of(N, B, setting.model.context, device=device)
    passes: dict[str, tuple[Backend, TwoStream]] = {
        "plain causal, one stream": (Causal(), causal),
        "straightforward dense mask": (Dense(), dense),
    }
    for name, backend in BACKENDS.items():
        if name == "eager":  # the reference, which keeps all scores
            continue
        try:
            passes[name] = backend(device, training=True), pattern
        except ValueError:  # not on this device, or not installed
            continue
    flops = {}
    for name, (attend, rows) in passes.items():
        counted = countable(attend)
        flops[name] = count_flops(_attention_step(setting, counted, rows, dtype, device), counted)
    steps = {name: _attention_step(setting, *one, dtype, device) for name, one in passes.items()}
    timings = interleave(steps, repeats, device)
    base = timings["straightforward dense mask"].median
    for name, timing in timings.items():
        allowed = passes[name][1].dense()[0]
        n_q, n_k = allowed.shape
        yield AttentionRow(
            name, 1e3 * timing.median, timing.min_max, base / timing.median, pairs=f"{n_q:,} x {n_k:,}",
            allowed=float(allowed.float().mean()), gflops=flops[name] / 1e9,
        )  # fmt: skip


def _attention_step(
    setting: Setting, attend: Backend, pattern: TwoStream, dtype: torch.dtype, device: torch.device
) -> Callable[[], Any]:
    c = setting.model
    n_q, n_k = pattern.queries.position.shape[1], pattern.keys.position.shape[1]

    def rows(n: int) -> Tensor:
        """Draw rows as a layer lays them out: (b, n, h, d), of which (b, h, n, d) is a view."""
        t = torch.randn(setting.rows, n, c.n_heads, c.head_width, device=device, dtype=dtype)
        return t.requires_grad_()

    q, k, v = rows(n_q), rows(n_k), rows(n_k)
    upstream = torch.randn_like(q)

    def step() -> None:
        out = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), pattern).transpose(1, 2)
        torch.autograd.grad(out, (q, k, v), upstream)

    return step


@dataclass(frozen=True)
class HeadRow:
    """Head and loss of the rows that a step masks, forward and backward, by one implementation."""

    head: str = column("head")
    rows: int = column("rows")
    ms: float = column("ms", rounded(1))
    min_max: str = column("min-max")
    of_plain: float = column("of plain", rounded(2))


def head(setting: Setting, repeats: int) -> Iterator[HeadRow]:
    """Time head and loss: in chunks, plain, and as torch does it in chunks where it has that."""
    device = resolve_device(setting.device)
    m = setting.rows * setting.seq_len * (setting.block_size + 1) // (2 * setting.block_size)
    hidden = torch.randn(m, setting.model.dim, device=device, requires_grad=True)
    matrix = (0.02 * torch.randn(setting.vocab, setting.model.dim, device=device)).requires_grad_()
    targets = torch.randint(0, setting.vocab, (m,), device=device)
    weights = torch.rand(m, device=device)
    losses: dict[str, Callable[[], Tensor]] = {
        "ours, in chunks": lambda: weighted_cross_entropy(hidden, matrix, targets, weights)[0],
        "plain": lambda: (F.cross_entropy((hidden @ matrix.t()).float(), targets, reduction="none") * weights).sum(),
    }
    if hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions()

        def of_torch() -> Tensor:
            losses = F.linear_cross_entropy(hidden, matrix, targets, reduction="none", options=options)
            return (losses * weights).sum()

        losses["torch's linear_cross_entropy"] = of_torch
    precision = precision_context(setting.precision, device)

    def step(loss: Callable[[], Tensor]) -> None:
        with precision():
            value = loss()
        torch.autograd.grad(value, (hidden, matrix))

    timings = interleave({name: partial(step, loss) for name, loss in losses.items()}, repeats, device)
    plain = timings["plain"].median
    for name, t in timings.items():
        yield HeadRow(name, m, 1e3 * t.median, t.min_max, plain / t.median)


@dataclass(frozen=True)
class DataRow:
    """A part of what a step does before the network runs."""

    part: str = column("before the network")
    ms: float = column("ms", rounded(2))
    min_max: str = column("min-max")
    tokens_per_second: float = column("tokens/s", round)


def data(setting: Setting, repeats: int) -> Iterator[DataRow]:
    """Time the rows of a batch, and its noise."""
    n_tokens = 50_000_000
    tokens = np.random.default_rng(0).integers(0, setting.vocab - 1, n_tokens).astype(np.uint16)
    counts = Counts(1, n_tokens, n_tokens, n_tokens, n_tokens)
    split = PackedTokens(tokens, None, counts, setting.seq_len, setting.vocab - 1)
    batch = split.rows(batch_rows(split.n_rows, setting.rows, 0, 0))
    noise = NoiseKeys(0, 0, torch.arange(setting.rows), 0, setting.rows)
    steps: dict[str, Callable[[], Any]] = {
        "rows of 50M tokens": lambda: split.rows(batch_rows(split.n_rows, setting.rows, 0, 7)),
        "counts and positions": lambda: Count().draw(noise, batch.is_target, setting.block_size, 1, True),
    }
    steps["rows of 50M tokens"]()  # the order of an epoch is made once
    timings = interleave(steps, repeats, torch.device("cpu"))
    n_batch = setting.rows * setting.seq_len
    for name, t in timings.items():
        yield DataRow(name, 1e3 * t.median, t.min_max, n_batch / t.median)


@dataclass(frozen=True)
class GrowthRow:
    """A training step at one size, beside that of plain autoregressive training."""

    size: str = column("what grows")
    value: int = column("to")
    ms: float = column("ms", rounded(1))
    min_max: str = column("min-max")
    autoregressive_ms: float = column("autoregressive, ms", rounded(1))
    of_autoregressive: float = column("of autoregressive", rounded(3))


def growth(setting: Setting, repeats: int) -> Iterator[GrowthRow]:
    """Time a step as one size grows, tokens in a batch staying the same."""
    device, N = resolve_device(setting.device), setting.seq_len
    tokens = setting.rows * N
    lengths = [n for n in (256, 512, 1024, 2048, 4096) if n <= tokens]
    sizes = [b for b in (1, 2, 4, 8, 16, 32, 64, 128, 256) if b < N] + [N]
    cases = [
        *(("row length", n, dataclasses.replace(setting, seq_len=n, rows=tokens // n)) for n in lengths),
        *(("block size", b, dataclasses.replace(setting, block_size=b)) for b in sizes),
        *(("vocabulary", v, dataclasses.replace(setting, vocab=v)) for v in (257, 1024, 4096, 16384, 50257)),
    ]
    for size, value, case in cases:
        name = f"block size {case.block_size}"
        timings = interleave({n: make_step(case, n) for n in (AUTOREGRESSIVE, name)}, repeats, device)
        base, ours = timings[AUTOREGRESSIVE].median, timings[name].median
        yield GrowthRow(size, value, 1e3 * ours, timings[name].min_max, 1e3 * base, base / ours)
