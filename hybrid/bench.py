"""Speed of training and generation, against baselines on the same weights.

    python -m hybrid.bench train                      # dim 256, 6 layers, 16 rows of 256 bytes, block size 16
    python -m hybrid.bench generate                   # 1,024 new tokens at block size 16
    python -m hybrid.bench train --seq-len 1024 --rows 4 --block-size 64

Variants take turns in one process (machines are noisy: compare ratios, not single times); medians over the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid import cli
from hybrid.attention import select_backend
from hybrid.decoding import FirstHitting
from hybrid.decoding.engine import Engine
from hybrid.device import keep_freed_memory, precision_context, resolve_device
from hybrid.masks import Pattern, TwoStream
from hybrid.model import ModelConfig, Transformer
from hybrid.noise import Keys
from hybrid.objective import Count, Masking, masked_loss
from hybrid.optim import OptimConfig, Optimizer

VOCAB = 257


class Straightforward(TwoStream):
    """The pattern of the obvious implementation: both streams whole, every row a query in every layer."""

    @property
    def n_clean(self) -> int:
        return self.begin + self.length

    def reading(self) -> Straightforward:
        return self


@dataclass(frozen=True)
class Dense:
    """One attention over a dense [clean; noisy] mask."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=pattern.dense()[:, None])


def straightforward_loss(model: Transformer, tokens: Tensor, masking: Masking, pattern: Straightforward) -> Tensor:
    """The same loss as `masked_loss` of an in-place model, with logits at all 2N positions."""
    noisy = torch.where(masking.masked[:, 0], model.mask_token_id, tokens)
    logits = model.head(model(torch.cat([tokens, noisy], dim=1), pattern.positions, pattern))
    losses = F.cross_entropy(logits[:, tokens.shape[1] :].flatten(0, 1).float(), tokens.flatten(), reduction="none")
    return (losses.view_as(tokens) * (masking.weight * masking.masked)[:, 0]).sum()


def training_variants(a: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    device = resolve_device(a.device)
    tokens = torch.randint(0, VOCAB - 1, (a.rows, a.seq_len), device=device)
    everything = torch.ones_like(tokens, dtype=torch.bool)
    context = precision_context(a.precision, device)

    def variant(prediction: str, block_size: int, straightforward: bool = False) -> Callable[[], Any]:
        model = _model(a, prediction, device, training=True)
        optimizer = Optimizer(model, OptimConfig())
        pattern = Straightforward(a.seq_len, block_size, device=device)
        if straightforward:
            model.attend = Dense()

        def step() -> None:
            keys = Keys(0, 0, torch.arange(a.rows, device=device), 0, a.rows)
            masking = Count().draw(keys, everything, block_size, 1, True)
            with context():
                if straightforward:
                    total = straightforward_loss(model, tokens, masking, pattern)
                else:
                    total = masked_loss(model, tokens, masking, block_size).total
            (total / tokens.numel()).backward()
            optimizer.step()
            optimizer.zero_grad()
            _wait(device)

        return step

    return {
        "autoregressive (one causal pass)": variant("next_token", 1),
        f"hybrid, block size {a.block_size}": variant("in_place", a.block_size),
        f"straightforward, block size {a.block_size}": variant("in_place", a.block_size, straightforward=True),
        f"masked, block size {a.seq_len}": variant("in_place", a.seq_len),
    }


def bench_train(a: argparse.Namespace) -> str:
    variants = training_variants(a)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(a.repeats + 2):
        for name, step in variants.items():
            started = time.perf_counter()
            step()
            if repeat >= 2:
                times[name].append(time.perf_counter() - started)
    median = {name: statistics.median(t) for name, t in times.items()}
    base = next(iter(median.values()))
    lines = [f"{'training step':36} {'ms':>8} {'min':>8} {'max':>8} {'tokens/s':>10} {'of AR':>7}"]
    for name, seconds in median.items():
        low, high = min(times[name]), max(times[name])
        lines.append(
            f"{name:36} {1e3 * seconds:8.1f} {1e3 * low:8.1f} {1e3 * high:8.1f} {a.rows * a.seq_len / seconds:10.0f} "
            f"{base / seconds:7.3f}"
        )
    return "\n".join(lines)


def bench_generate(a: argparse.Namespace) -> str:
    """Time per block over the context, with the cache and without."""
    device = resolve_device(a.device)
    model = _model(a, "in_place", device, training=False)
    lines = [f"{'generation':36} {'seconds':>8} {'tokens/s':>9} {'forwards':>9}  ms per block, by quarter of the text"]
    totals = {}
    for name, cache in (("with the cache", True), ("without the cache", False)):
        engine = Engine(
            model, a.new_tokens, a.block_size, FirstHitting(a.steps), cache=cache, stop_at_end=False,
            precision=precision_context(a.precision, device),
        )  # fmt: skip
        engine.generate([[]], min(2 * a.block_size, a.new_tokens))  # warm-up
        times, nfe = _block_times(engine, a.new_tokens, a.block_size)
        totals[name] = sum(times)
        quarters = [times[i * len(times) // 4 : (i + 1) * len(times) // 4] for i in range(4)]
        by_quarter = [1e3 * statistics.median(q) for q in quarters if q]
        lines.append(
            f"{name:36} {totals[name]:8.2f} {a.new_tokens / totals[name]:9.1f} {nfe:9}  "
            + "  ".join(f"{ms:.1f}" for ms in by_quarter)
            + f"   (last / first: {by_quarter[-1] / by_quarter[0]:.2f})"
        )
    lines.append(f"the cache is {totals['without the cache'] / totals['with the cache']:.1f} times faster")
    return "\n".join(lines)


def _block_times(engine: Engine, n_tokens: int, block_size: int) -> tuple[list[float], int]:
    """Seconds of each block, and the number of forwards."""
    times, done, nfe = [], 0, 0
    last = time.perf_counter()
    for progress in engine.stream([[]], n_tokens):
        known = sum(t != engine.model.mask_token_id for t in progress.tokens[0])
        if known >= min((done + 1) * block_size, n_tokens):
            now = time.perf_counter()
            times.append(now - last)
            last, done, nfe = now, done + 1, progress.nfe
            if done * block_size >= n_tokens:
                break
    return times, nfe


def _model(a: argparse.Namespace, prediction: str, device: torch.device, training: bool) -> Transformer:
    torch.manual_seed(0)
    context = "causal" if prediction == "next_token" else "block_causal"
    config = ModelConfig(
        dim=a.dim, n_layers=a.layers, n_heads=max(a.dim // 64, 1), context=context, prediction=prediction
    )
    model = Transformer(config, VOCAB, VOCAB - 1).to(device)
    model.attend = select_backend(a.attention, device, training)
    return model


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> int:
    a = parse()
    device = resolve_device(a.device)
    if device.type == "cpu":
        keep_freed_memory()
    from hybrid.tracking import environment

    facts = environment(device)
    print(
        f"{facts['device']} ({facts['processor']}, {facts['threads']} threads), torch {facts['libraries']['torch']}, "
        f"commit {(facts['commit'] or 'unknown')[:10]}{' + changes' if facts['dirty'] else ''}; dim {a.dim}, "
        f"{a.layers} layers, {a.precision}, "
        + (
            f"{a.rows} rows of {a.seq_len}"
            if a.what == "train"
            else f"{a.new_tokens} new tokens, {a.steps or 'all'} steps"
        )
    )
    print(bench_train(a) if a.what == "train" else bench_generate(a))
    return 0


def parse() -> argparse.Namespace:
    parser = cli.Parser(prog="python -m hybrid.bench", description=__doc__)
    parser.add_argument("what", choices=("train", "generate"))
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--seq-len", type=int, default=256, help="train: tokens of a row")
    parser.add_argument("--rows", type=int, default=16, help="train: rows of a step")
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=1024, help="generate: tokens of the text")
    parser.add_argument("--steps", type=int, help="generate: forwards of a block (default: one per token)")
    parser.add_argument("--repeats", type=int, default=9, help="train: counted steps of each variant")
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        help="default: auto to train, fp32 to generate (as generate.py)",
    )
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--device", default="auto")
    a = parser.parse_args()
    a.precision = a.precision or ("auto" if a.what == "train" else "fp32")
    return a


if __name__ == "__main__":
    sys.exit(cli.run(main))
