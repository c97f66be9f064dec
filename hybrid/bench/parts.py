"""Parts of a training step by themselves: attention backends, the head, and what happens before the network runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid.bench.baselines import Causal, Dense, Straightforward
from hybrid.bench.cost import count_flops
from hybrid.bench.training import AUTOREGRESSIVE, Setting, make_step
from hybrid.data.batches import batch_rows
from hybrid.data.dataset import PackedTokens
from hybrid.data.packing import Counts
from hybrid.device import precision_context, resolve_device, resolve_precision
from hybrid.model.attention import BACKENDS, Backend
from hybrid.model.kernels.cross_entropy import weighted_cross_entropy
from hybrid.model.masks import TwoStream
from hybrid.objectives.estimators import Count
from hybrid.objectives.noise import NoiseKeys
from hybrid.results.timing import interleave


def attention(setting: Setting, repeats: int) -> list[dict[str, Any]]:
    """Forward and backward of one layer's attention, not its last: a record per backend that trains on this device."""
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
    steps = {name: _attention_step(setting, *one, dtype, device) for name, one in passes.items()}
    timings = interleave(steps, repeats, device)
    base = timings["straightforward dense mask"].median
    records = []
    for name, timing in timings.items():
        allowed = passes[name][1].dense()[0]
        n_q, n_k = allowed.shape
        records.append(
            {
                "attention": name,
                "ms": round(1e3 * timing.median, 2),
                "min-max": timing.spread,
                "times as fast as dense": round(base / timing.median, 2),
                "queries x keys": f"{n_q:,} x {n_k:,}",
                "of these allowed": round(float(allowed.float().mean()), 3),
                "GFLOP": round(count_flops(steps[name]) / 1e9, 2),
            }
        )
    return records


def _attention_step(
    setting: Setting, attend: Backend, pattern: TwoStream, dtype: torch.dtype, device: torch.device
) -> Callable[[], Any]:
    c = setting.model
    n_q, n_k = pattern.queries.position.shape[1], pattern.keys.position.shape[1]

    def rows(n: int) -> Tensor:
        """As a layer lays them out: (b, h, n, d), a view of (b, n, h, d)."""
        t = torch.randn(setting.rows, n, c.n_heads, c.head_width, device=device, dtype=dtype)
        return t.requires_grad_()

    q, k, v = rows(n_q), rows(n_k), rows(n_k)
    upstream = torch.randn_like(q)

    def step() -> None:
        out = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), pattern).transpose(1, 2)
        torch.autograd.grad(out, (q, k, v), upstream)

    return step


def head(setting: Setting, repeats: int) -> list[dict[str, Any]]:
    """Head and loss, forward and backward, of the rows that a step masks; with torch's chunked form where it has it."""
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
    return [
        {
            "head": name,
            "rows": m,
            "ms": round(1e3 * timing.median, 1),
            "min-max": timing.spread,
            "of plain": round(timings["plain"].median / timing.median, 2),
        }
        for name, timing in timings.items()
    ]


def data(setting: Setting, repeats: int) -> list[dict[str, Any]]:
    """What a step does before the network runs: the rows of the batch, and its noise."""
    n_tokens = 50_000_000
    tokens = np.random.default_rng(0).integers(0, setting.vocab - 1, n_tokens).astype(np.uint16)
    counts = Counts(1, n_tokens, n_tokens, n_tokens, n_tokens)
    split = PackedTokens(tokens, None, counts, setting.seq_len, setting.vocab - 1)
    batch = split.rows(batch_rows(split.n_rows, setting.rows, 0, 0))
    noise = NoiseKeys(0, 0, torch.arange(setting.rows), 0, setting.rows)
    estimators = {"counts and positions": Count(), "and a learned proposal": Count("adaptive")}
    steps: dict[str, Callable[[], Any]] = {
        "rows of 50M tokens": lambda: split.rows(batch_rows(split.n_rows, setting.rows, 0, 7)),
        **{
            name: lambda e=e: e.draw(noise, batch.is_target, setting.block_size, 1, True)
            for name, e in estimators.items()
        },
    }
    steps["rows of 50M tokens"]()  # the order of an epoch is made once
    return [
        {
            "before the network": name,
            "ms": round(1e3 * timing.median, 2),
            "min-max": timing.spread,
            "tokens/s": round(setting.rows * setting.seq_len / timing.median),
        }
        for name, timing in interleave(steps, repeats, torch.device("cpu")).items()
    ]


def growth(setting: Setting, repeats: int) -> list[dict[str, Any]]:
    """Time of a step as one size grows, tokens in a batch staying the same, beside plain autoregressive training."""
    device, N = resolve_device(setting.device), setting.seq_len
    tokens = setting.rows * N
    lengths = [n for n in (256, 512, 1024, 2048, 4096) if n <= tokens]
    sizes = [b for b in (1, 2, 4, 8, 16, 32, 64, 128, 256) if b < N] + [N]
    cases = [
        *(("row length", n, dataclasses.replace(setting, seq_len=n, rows=tokens // n)) for n in lengths),
        *(("block size", b, dataclasses.replace(setting, block_size=b)) for b in sizes),
        *(("vocabulary", v, dataclasses.replace(setting, vocab=v)) for v in (257, 1024, 4096, 16384, 50257)),
    ]
    records = []
    for what, value, case in cases:
        ours = f"block size {case.block_size}"
        steps = {name: make_step(case, name) for name in (AUTOREGRESSIVE, ours)}
        timings = interleave(steps, repeats, device)
        records.append(
            {
                "what grows": what,
                "to": value,
                "ms": round(1e3 * timings[ours].median, 1),
                "min-max": timings[ours].spread,
                "autoregressive, ms": round(1e3 * timings[AUTOREGRESSIVE].median, 1),
                "of autoregressive": round(timings[AUTOREGRESSIVE].median / timings[ours].median, 3),
            }
        )
    return records
