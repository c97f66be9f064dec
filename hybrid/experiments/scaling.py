"""What do models of a given size cost to train and to serve? From FLOPs and bytes; nothing is run.

    python -m hybrid.experiments.scaling --config configs/gpu/openwebtext.yaml configs/gpu/7b.yaml

FLOPs are those of matrix products, a multiplication and an addition each; of attention, those of the pairs that the
mask allows. What a device can do is given by options; the defaults are from the data sheet of an H100 SXM (dense bf16,
HBM3).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hybrid import cli
from hybrid.options import at_least
from hybrid.results.table import Table, column

if TYPE_CHECKING:
    from hybrid.config import Config
    from hybrid.experiments.measuring.shape import Shape

TOKENS_PER_PARAMETER = 20
"""Of a compute-optimal autoregressive model (Hoffmann et al. 2203.15556); for masked diffusion it is not settled."""


@dataclass(frozen=True)
class Device:
    """FLOP/s in bf16, bytes/s and bytes of memory, and the share of the peak that training gets."""

    peak: float
    bandwidth: float
    memory: float
    utilisation: float


def main() -> int:
    a = parse()
    from hybrid.config import load_config
    from hybrid.experiments.measuring.shape import parameters_of, shape_of
    from hybrid.results.publish import publish, refuse_foreign

    refuse_foreign(a.output)
    device = Device(a.peak * 1e12, a.bandwidth * 1e12, a.memory * 1e9, a.utilisation)
    configs = {path: load_config(path, a.overrides) for path in a.config}
    models = {path: (config, shape_of(config), parameters_of(config)) for path, config in configs.items()}
    parts = [
        _explanation(device),
        sizes(models),
        training(models, device),
        memory(models, device, a.ranks),
        serving(models, device),
        _settings(),
    ]
    publish(a.output, "hybrid.experiments.scaling", "What models cost", [0], parts)
    return 0


Models = dict[str, tuple["Config", "Shape", int]]
"""Path of a configuration -> it, its sizes and its number of parameters."""


@dataclass(frozen=True)
class SizeRow:
    """A model."""

    config: str = column("config")
    parameters: int = column("parameters", lambda n: f"{n / 1e6:,.0f}M")
    n_layers: int = column("layers")
    dim: int = column("width")
    vocab: int = column("vocabulary")
    seq_len: int = column("N")
    block_size: int = column("B")


def sizes(models: Models) -> Table:
    rows = [
        SizeRow(path, n, s.model.n_layers, s.model.dim, s.vocab, s.seq_len, s.block_size)
        for path, (_, s, n) in models.items()
    ]
    return Table(rows, "## Models")


@dataclass(frozen=True)
class TrainingRow:
    """A model and a way of training it; speeds are those of one device."""

    config: str = column("config")
    training: str = column("training")
    gflops: float = column("GFLOP per token")
    speed: float = column("speed of autoregressive", ".2f")
    tokens_per_second: float = column("tokens/s of a device", ",.0f")
    tokens: int = column("tokens", lambda n: f"{n / 1e9:,.0f}B")
    hours: float = column("device hours", ",.0f")


def training(models: Models, device: Device) -> Table:
    rows = []
    for path, (_, s, n) in models.items():
        tokens = TOKENS_PER_PARAMETER * n
        base = s.autoregressive_flops()
        ways = {
            "plain autoregressive": base,
            f"block size {s.block_size}": dataclasses.replace(s, draws=1).training_flops(),
            f"block size {s.block_size}, 2 draws": dataclasses.replace(s, draws=2).training_flops(),
            "fully masked": dataclasses.replace(s, block_size=s.seq_len, draws=1).training_flops(),
        }
        for name, flops in ways.items():
            rate = device.peak * device.utilisation / flops
            rows.append(TrainingRow(path, name, flops / 1e9, base / flops, rate, tokens, tokens / rate / 3600))
    caption = f"## Training: {TOKENS_PER_PARAMETER} tokens per parameter at {device.utilisation:.0%} of the peak"
    return Table(rows, caption)


@dataclass(frozen=True)
class MemoryRow:
    """One rank: its state in GB, and how many tokens of text fit beside it (None: not one row)."""

    config: str = column("config")
    parallel: str = column("trainer.parallel")
    ranks: int | str = column("ranks")
    state: float = column("state, GB", ",.1f")
    tokens: int | None = column("tokens at once")
    recomputed: int | None = column("with trainer.recompute")


def memory(models: Models, device: Device, ranks: list[int]) -> Table:
    rows = []
    for path, (config, s, n) in models.items():
        per_parameter = 16 + (4 if config.optim.ema_decay else 0)  # weights, gradients, two moments, average: float32
        for mode, count in [("ddp", 1), *(("fsdp", r) for r in ranks)]:
            state = per_parameter * n / (1 if mode == "ddp" else count)
            # Put together: two layers in bf16, one in use and the next; embedding and head, and their gradients.
            full = 0.0 if mode == "ddp" else 2 * 2 * s.layer_parameters + 2 * 4 * 2 * s.vocab * s.model.dim
            room = 0.9 * device.memory - state - full  # a tenth for kernels' work space and fragmentation
            fits = [math.floor(room / s.activation_bytes(r) / s.seq_len) * s.seq_len for r in (False, True)]
            plain, recomputed = (tokens if tokens > 0 else None for tokens in fits)
            shown = count if mode == "fsdp" else "any"
            rows.append(MemoryRow(path, mode, shown, (state + full) / 1e9, plain, recomputed))
    return Table(rows, f"## Memory of a rank, of {device.memory / 1e9:.0f} GB")


@dataclass(frozen=True)
class ServingRow:
    """A model served from one device."""

    config: str = column("config")
    weights: float = column("weights, GB", ",.1f")
    tokens_per_second: float = column("tokens/s at batch 1, autoregressive", ",.0f")
    faster: float = column("at 4 tokens a forward", ",.0f")
    cache: float = column("cache, kB per token", ",.0f")
    texts: float = column("texts of N tokens that fit", ",.0f")
    batch: int = column("batch that saturates it, autoregressive")
    batch_of_blocks: int = column("with blocks of B")


def serving(models: Models, device: Device) -> Table:
    rows = []
    for path, (_, s, n) in models.items():
        read = 2 * (n - (s.vocab + 1) * s.model.dim)  # bf16, without the table of embeddings
        forwards = device.bandwidth / read
        balance = device.peak / device.bandwidth  # rows of a forward from which on products take longer than reading
        texts = (device.memory * 0.9 - 2 * n) / (s.cache_bytes() * s.seq_len)
        row = ServingRow(
            path, 2 * n / 1e9, forwards, 4 * forwards, s.cache_bytes() / 1e3, texts, math.ceil(balance),
            math.ceil(balance / s.block_size),
        )  # fmt: skip
        rows.append(row)
    return Table(rows, "## Serving in bf16, an upper limit from bytes read")


def _explanation(device: Device) -> str:
    return f"""\
Computed, not measured: no GPU took part. A device has {device.peak / 1e12:,.0f} TFLOP/s, {device.bandwidth / 1e12:.2f}
TB/s and {device.memory / 1e9:,.0f} GB. Training FLOPs and parameters are compared with those that torch counts, and
pairs of attention with the mask itself (`tests/experiments/test_scaling.py`). Activations are what autograd keeps of a
layer under bf16 autocast; a tenth of the memory is left for everything else."""


def _settings() -> str:
    return """\
## Which settings

* A model whose state fits beside its activations trains with `ddp`. When it does not, `trainer.parallel=fsdp` with as
  many ranks as make it fit, and `trainer.recompute=true` when a micro-batch of a few rows does not: a third more work.
* Two streams cost nearly two passes. A second draw on the same clean pass costs half of what the first does, so
  `objective.draws=2 objective.complementary=true` masks every token once for one and a half times the work.
* At batch 1 a forward costs the reading of its weights, whatever the number of rows: every further token that a forward
  reveals is free, up to the block. [Tokens per forward](forwards.md) says what it costs in quality.
* Blocks fill the device with far fewer texts: from the last column on, a larger batch does not make a token cheaper,
  and what counts is rows per token: a step that reveals k of B tokens computes B / k rows for each."""


def parse() -> argparse.Namespace:
    parser = cli.Parser(prog="python -m hybrid.experiments.scaling", description=__doc__)
    parser.add_argument("--config", nargs="+", required=True, metavar="FILE", help="models, by their configs")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over those of the files")
    parser.add_argument(
        "--peak", type=float, default=989.0, metavar="T", help="TFLOP/s of a device in bf16 (default: 989)"
    )
    parser.add_argument("--bandwidth", type=float, default=3.35, metavar="T", help="TB/s of its memory (default: 3.35)")
    parser.add_argument("--memory", type=float, default=80.0, metavar="G", help="GB of its memory (default: 80)")
    parser.add_argument(
        "--utilisation", type=float, default=0.4, metavar="S",
        help="share of the peak that training reaches (default: 0.4)",
    )  # fmt: skip
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[8, 64], metavar="R",
        help="ranks that share a model with fsdp (default: 8 64)",
    )  # fmt: skip
    parser.add_argument("--output", metavar="FILE", help="write Markdown there")
    a = parser.parse_intermixed_args()
    for name in ("peak", "bandwidth", "memory"):
        if not getattr(a, name) > 0:
            raise ValueError(f"--{name}: {getattr(a, name)} must be positive")
    if not 0 < a.utilisation <= 1:
        raise ValueError(f"--utilisation: {a.utilisation} must be above 0 and at most 1")
    at_least("--ranks", min(a.ranks), 1)
    return a


if __name__ == "__main__":
    sys.exit(cli.run(main))
