"""Time, FLOPs and memory of a training step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import torch

from hybrid.bench.baselines import Causal, Dense, Straightforward, causal_loss, straightforward_loss
from hybrid.bench.cost import count_flops, countable, matmul_rate, peak_growth
from hybrid.device import keep_freed_memory, precision_context, resolve_device, resolve_precision
from hybrid.model import ModelConfig, Transformer
from hybrid.model.attention import Backend, select_backend
from hybrid.model.build import compile_layers, compiles
from hybrid.objectives.cross_entropy import masked_loss
from hybrid.objectives.estimators import Count
from hybrid.objectives.noise import NoiseKeys
from hybrid.results.table import column
from hybrid.results.timing import interleave
from hybrid.training.optim import OptimConfig, Optimizer

if TYPE_CHECKING:
    from hybrid.config import Config

AUTOREGRESSIVE = "plain autoregressive"
STRAIGHTFORWARD = "straightforward [clean; noisy]"


@dataclass(frozen=True)
class Setting:
    """What is measured: sizes, and where and in which precision it runs."""

    model: ModelConfig
    vocab: int
    seq_len: int
    rows: int
    block_size: int
    precision: str
    device: str
    compile: str = "auto"

    @classmethod
    def of(cls, config: Config, vocab: int) -> Setting:
        """Take the sizes of a configuration, at the first of its block sizes; the vocabulary is any."""
        from hybrid.config import resolve_block_sizes  # needs OmegaConf, which no step does

        seq_len = config.data.seq_len
        rows, sizes = config.trainer.batch_tokens // seq_len, resolve_block_sizes(config.objective.block_size, seq_len)
        trainer = config.trainer
        return cls(config.model, vocab, seq_len, rows, sizes[0], trainer.precision, config.run.device, trainer.compile)

    @property
    def compiles(self) -> bool:
        """Whether layers are compiled, as those of a run are."""
        return compiles(self.compile, resolve_device(self.device))

    def build(self, prediction: str) -> Transformer:
        """Build a model whose weights are the same for every variant, with an attention that generates."""
        device = resolve_device(self.device)
        torch.manual_seed(0)
        context = "causal" if prediction == "next_token" else "block_causal"
        config = dataclasses.replace(self.model, context=context, prediction=prediction)
        model = Transformer(config, self.vocab, self.vocab - 1).to(device)
        model.attend = select_backend(self.model.attention, device, training=False)
        return model

    @property
    def variants(self) -> dict[str, tuple[str, int, str]]:
        """Name -> prediction, block size, kind of pass."""
        variants = {
            AUTOREGRESSIVE: ("next_token", 1, "causal"),
            "block size 1, next_token": ("next_token", 1, "hybrid"),
            f"block size {self.block_size}": ("in_place", self.block_size, "hybrid"),
            f"block size {self.seq_len}": ("in_place", self.seq_len, "hybrid"),
        }
        if self.block_size < self.seq_len:
            variants[STRAIGHTFORWARD] = ("in_place", self.block_size, "straightforward")
        return variants


def attention_of(setting: Setting, name: str) -> Backend:
    """Return the attention of a variant."""
    kind = setting.variants[name][2]
    if kind == "hybrid":
        return select_backend(setting.model.attention, resolve_device(setting.device), training=True)
    return Causal() if kind == "causal" else Dense()


def make_step(
    setting: Setting, name: str, attend: Backend | None = None, model: Transformer | None = None
) -> Callable[[], Any]:
    """Make an optimizer step of a variant on random tokens; the weights of all variants start equal.

    Args:
        attend: what stands in for its attention; None: nothing does.
        model: what it trains, of the variant's prediction; None: it builds one.
    """
    prediction, block_size, kind = setting.variants[name]
    device = resolve_device(setting.device)
    model = model or setting.build(prediction)
    model.attend = attend or attention_of(setting, name)
    if setting.compiles:
        compile_layers(model)
    tokens = torch.randint(0, setting.vocab - 1, (setting.rows, setting.seq_len))
    everything = torch.ones_like(tokens, dtype=torch.bool)
    noise = NoiseKeys(0, 0, torch.arange(setting.rows), 0, setting.rows)
    pattern = Straightforward.of(setting.seq_len, block_size, device=device)
    optimizer, precision = Optimizer(model, OptimConfig()), precision_context(setting.precision, device)
    never = torch.zeros((), device=device)

    def step() -> None:
        with precision():
            if kind == "causal":
                total = causal_loss(model, tokens)
            else:
                masking = Count().draw(noise, everything, block_size, 1, True)
                if kind == "straightforward":
                    total = straightforward_loss(model, tokens, masking, pattern)
                else:
                    total = masked_loss(model, tokens, masking, block_size).total
        (total / tokens.numel()).backward()
        optimizer.step(skip=never)
        optimizer.zero_grad()

    return step


def count_step(setting: Setting, name: str) -> int:
    """Count the FLOPs of a step, of one that is not compiled."""
    attend = countable(attention_of(setting, name))
    return count_flops(make_step(dataclasses.replace(setting, compile="off"), name, attend), attend)


def rounded(digits: int) -> Callable[[float], float]:
    """Make the form of a column whose numbers are rounded."""
    return partial(round, ndigits=digits)


@dataclass(frozen=True)
class TrainingRow:
    """An optimizer step of one variant; ratios above 1 are faster."""

    variant: str = column("variant")
    ms: float = column("ms", rounded(1))
    min_max: str = column("min-max")
    tokens_per_second: float = column("tokens/s", round)
    of_autoregressive: float = column("of autoregressive", rounded(3))
    of_straightforward: float | None = column("of straightforward", rounded(3))  # None: the variant was not run
    gflops: float = column("GFLOP", rounded(1))
    of_matmul_rate: float = column("of matmul rate", rounded(3))
    peak_mib: float | None = column("peak MiB", round, optional=True)


def measure(setting: Setting, repeats: int, memory: bool) -> Iterator[TrainingRow]:
    """Count the FLOPs of every variant and, if asked for, its memory; then time them all."""
    device = resolve_device(setting.device)
    flops = {name: count_step(setting, name) for name in setting.variants}
    peaks = {name: _peak(setting, name) / 2**20 for name in setting.variants} if memory else {}
    steps = {name: make_step(setting, name) for name in setting.variants}
    timings = interleave(steps, repeats, device)
    bf16 = resolve_precision(setting.precision, device) == "bf16"
    rate = matmul_rate(device, torch.bfloat16 if bf16 else torch.float32)
    base = timings[AUTOREGRESSIVE].median
    against = timings.get(STRAIGHTFORWARD)
    for name, timing in timings.items():
        yield TrainingRow(
            name,
            ms=1e3 * timing.median,
            min_max=timing.min_max,
            tokens_per_second=setting.rows * setting.seq_len / timing.median,
            of_autoregressive=base / timing.median,
            of_straightforward=None if against is None else against.median / timing.median,
            gflops=flops[name] / 1e9,
            of_matmul_rate=flops[name] / timing.median / rate,
            peak_mib=peaks.get(name),
        )


def _peak(setting: Setting, name: str) -> int:
    """Measure in a process of its own, since the peak of a process never falls."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_here, setting, name).result()


def _peak_here(setting: Setting, name: str) -> int:
    device = resolve_device(setting.device)
    if device.type == "cpu":
        keep_freed_memory()
    return peak_growth(lambda: make_step(setting, name), device)
