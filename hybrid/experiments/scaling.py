"""What do models of a given size cost to train and to serve? From FLOPs and bytes; nothing is run.

    python -m hybrid.experiments.scaling --config configs/gpu/openwebtext.yaml configs/gpu/7b.yaml

FLOPs are those of matrix products, a multiplication and an addition each; of attention, those of the pairs that the
mask allows. What a device can do is given by options; the defaults are from the data sheet of an H100 SXM (dense bf16,
HBM3).

Shape legend: N row length, B block size, D noise draws, L layers, V vocabulary.
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

if TYPE_CHECKING:
    import torch

    from hybrid.config import Config
    from hybrid.model import ModelConfig
    from hybrid.results.table import Table

TOKENS_PER_PARAMETER = 20
"""Of a compute-optimal autoregressive model (Hoffmann et al. 2203.15556); for masked diffusion it is not settled."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and of what it is trained on."""

    model: ModelConfig
    vocab: int
    seq_len: int
    block_size: int
    draws: int = 1

    @property
    def layer_parameters(self) -> int:
        """Of the matrices of one layer."""
        m = self.model
        width, kv_width = m.n_heads * m.head_width, m.kv_heads * m.head_width
        matrices = 3 if m.mlp == "swiglu" else 2
        return m.dim * (2 * width + 2 * kv_width + matrices * m.mlp_dim)

    @property
    def n_blocks(self) -> int:
        return self.seq_len // self.block_size

    def training_flops(self) -> float:
        """Of an in-place model per token of text, forward and backward.

        The last layer needs only keys and values of the clean rows; behind its attention, and in the head, only the
        masked rows go on: on average (B + 1) / 2B of them.
        """
        m, N, B, D = self.model, self.seq_len, self.block_size, self.draws
        kv = 2 * m.dim * m.kv_heads * m.head_width
        q = m.dim * m.n_heads * m.head_width
        clean, noisy, masked = N - B, D * N, D * N * (B + 1) / (2 * B)
        inner = (m.n_layers - 1) * (clean + noisy) * self.layer_parameters
        last = clean * kv + noisy * (kv + q) + masked * (self.layer_parameters - kv - q)
        products = inner + last + masked * m.dim * self.vocab
        scores = self.pairs(clean=True) * (m.n_layers - 1) + self.pairs(clean=False) * m.n_layers
        return 3 * (2 * products + 4 * m.n_heads * m.head_width * scores) / N

    def pairs(self, clean: bool) -> int:
        """(query, key) pairs that the mask of a row allows: block i of either stream sees i + 1 blocks of B tokens."""
        B, g = self.block_size, self.n_blocks
        return B * B * g * (g - 1) // 2 if clean else self.draws * B * B * g * (g + 1) // 2

    def autoregressive_flops(self) -> float:
        """Of the same network as a plain causal model, per token, logits everywhere."""
        m, N = self.model, self.seq_len
        products = m.n_layers * self.layer_parameters + m.dim * self.vocab
        return 3 * (2 * products + 4 * m.n_layers * m.n_heads * m.head_width * (N + 1) / 2)

    def cache_bytes(self) -> int:
        """Keys and values of one token, bf16."""
        return 2 * 2 * self.model.n_layers * self.model.kv_heads * self.model.head_width

    def activation_bytes(self, recompute: bool) -> float:
        """Kept for the backward pass, per token of text, under bf16 autocast."""
        rows = (self.seq_len - self.block_size + self.draws * self.seq_len) / self.seq_len
        per_row = kept_per_row(self.model, recompute)
        return rows * self.model.n_layers * per_row


def kept_per_row(model: ModelConfig, recompute: bool) -> float:
    """Bytes that one layer keeps per row, asked of autograd (on a CPU); of attention what a flash kernel keeps."""
    import torch

    from hybrid.model.layers import Layer

    if recompute:
        return 4.0 * model.dim  # the residual stream before each layer
    rows = 64
    kept: dict[int, torch.UntypedStorage] = {}  # by address, and alive, so that no two of them share one

    def pack(t: torch.Tensor) -> torch.Tensor:
        if t.ndim > 2:  # no weights, nor copies of them in bf16
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    layer = Layer(model)
    x = torch.randn(1, rows, model.dim, requires_grad=True)
    angles = torch.zeros(2, 1, rows, 1, model.head_width, dtype=torch.bfloat16).unbind()
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
    with torch.autocast("cpu", dtype=torch.bfloat16), hooks:
        y, k, v = layer.keys(x, angles)  # type: ignore[arg-type]
        q = layer.queries(y, angles)  # type: ignore[arg-type]
        layer.rest(x, q.flatten(2))
    for t in (q, k, v):
        pack(t)
    return sum(storage.nbytes() for storage in kept.values()) / rows + 4 * model.n_heads


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
    from hybrid.results.table import publish, refuse_foreign

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


def shape_of(config: Config) -> Shape:
    from hybrid.config import resolve_block_sizes

    size = resolve_block_sizes(config.objective.block_size, config.data.seq_len)[0]
    vocab = 257 if config.data.tokenizer == "byte" else config.data.vocab_size
    return Shape(config.model, vocab, config.data.seq_len, size, config.objective.draws)


def parameters_of(config: Config) -> int:
    import torch

    from hybrid.model import Transformer

    vocab = shape_of(config).vocab
    with torch.device("meta"):
        return Transformer(config.model, vocab, vocab - 1).n_parameters()


Models = dict[str, tuple["Config", Shape, int]]


def sizes(models: Models) -> Table:
    from hybrid.results.table import Table

    rows = [
        (path, f"{n / 1e6:,.0f}M", s.model.n_layers, s.model.dim, s.vocab, s.seq_len, s.block_size)
        for path, (_, s, n) in models.items()
    ]
    return Table(["config", "parameters", "layers", "width", "vocabulary", "N", "B"], rows, "## Models")


def training(models: Models, device: Device) -> Table:
    """A line per model and way of training."""
    from hybrid.results.table import Table

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
            hours = tokens / rate / 3600
            rows.append(
                (
                    path,
                    name,
                    flops / 1e9,
                    f"{base / flops:.2f}",
                    f"{rate:,.0f}",
                    f"{tokens / 1e9:,.0f}B",
                    f"{hours:,.0f}",
                )
            )
    columns = ["config", "training", "GFLOP per token", "speed of autoregressive", "tokens/s of a device"]
    columns += ["tokens", "device hours"]
    caption = f"## Training: {TOKENS_PER_PARAMETER} tokens per parameter at {device.utilisation:.0%} of the peak"
    return Table(columns, rows, caption)


def memory(models: Models, device: Device, ranks: list[int]) -> Table:
    """GB of one rank: state, and how many text tokens of activations fit beside it."""
    from hybrid.results.table import Table

    rows = []
    for path, (config, s, n) in models.items():
        per_parameter = 16 + (4 if config.optim.ema_decay else 0)  # weights, gradients, two moments, average: float32
        for mode, count in [("ddp", 1), *(("fsdp", r) for r in ranks)]:
            state = per_parameter * n / (1 if mode == "ddp" else count)
            # Put together: two layers in bf16, one in use and the next; embedding and head, and their gradients.
            whole = 0.0 if mode == "ddp" else 2 * 2 * s.layer_parameters + 2 * 4 * 2 * s.vocab * s.model.dim
            room = 0.9 * device.memory - state - whole  # a tenth for kernels' work space and fragmentation
            fits = [room / s.activation_bytes(recompute) for recompute in (False, True)]
            shown = [f"{math.floor(f / s.seq_len) * s.seq_len:,}" if f >= s.seq_len else "-" for f in fits]
            rows.append((path, mode, count if mode == "fsdp" else "any", f"{(state + whole) / 1e9:,.1f}", *shown))
    columns = ["config", "trainer.parallel", "ranks", "state, GB", "tokens at once", "with trainer.recompute"]
    return Table(columns, rows, f"## Memory of a rank, of {device.memory / 1e9:.0f} GB")


def serving(models: Models, device: Device) -> Table:
    from hybrid.results.table import Table

    rows = []
    for path, (_, s, n) in models.items():
        read = 2 * (n - (s.vocab + 1) * s.model.dim)  # bf16, without the table of embeddings
        forwards = device.bandwidth / read
        balance = device.peak / device.bandwidth  # rows of a forward from which on products take longer than reading
        texts = (device.memory * 0.9 - 2 * n) / (s.cache_bytes() * s.seq_len)
        numbers = (
            forwards,
            forwards * 4,
            s.cache_bytes() / 1e3,
            texts,
            math.ceil(balance),
            math.ceil(balance / s.block_size),
        )
        rows.append((path, f"{2 * n / 1e9:,.1f}", *(f"{number:,.0f}" for number in numbers)))
    columns = [
        "config", "weights, GB", "tokens/s at batch 1, autoregressive", "at 4 tokens a forward", "cache, kB per token",
        "texts of N tokens that fit", "batch that saturates it, autoregressive", "with blocks of B",
    ]  # fmt: skip
    return Table(columns, rows, "## Serving in bf16, an upper limit from bytes read")


def _explanation(device: Device) -> str:
    return f"""\
Computed, not measured: no GPU took part. A device has {device.peak / 1e12:,.0f} TFLOP/s, {device.bandwidth / 1e12:.2f}
TB/s and {device.memory / 1e9:,.0f} GB. Training FLOPs and parameters are compared with those that torch counts, and
pairs of attention with the mask itself (`tests/test_scaling.py`). Activations are what autograd keeps of a layer under
bf16 autocast; a tenth of the memory is left for everything else."""


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
    parser.add_argument("--peak", type=float, default=989.0, metavar="T", help="TFLOP/s in bf16 (default: 989)")
    parser.add_argument("--bandwidth", type=float, default=3.35, metavar="T", help="TB/s of memory (default: 3.35)")
    parser.add_argument("--memory", type=float, default=80.0, metavar="G", help="GB (default: 80)")
    parser.add_argument("--utilisation", type=float, default=0.4, metavar="S", help="share of the peak (default: 0.4)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64], metavar="R", help="of fsdp (default: 8 64)")
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
