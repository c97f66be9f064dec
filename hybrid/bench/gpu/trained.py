"""Training as a run does it, on a device: what a card computes against a CPU."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from hybrid.bench.gpu.stage import Bench, Stage
from hybrid.data.batches import PackedTokens
from hybrid.data.config import DataConfig
from hybrid.data.packing import Counts
from hybrid.data.preparing import prepare
from hybrid.decoding import GenerationConfig
from hybrid.decoding.engine import Engine
from hybrid.device import precision_context
from hybrid.model import ModelConfig
from hybrid.model.attention import select_backend
from hybrid.model.build import build_model, compile_layers
from hybrid.objectives import ObjectiveConfig, build_objective
from hybrid.results.table import column
from hybrid.training.config import TrainerConfig
from hybrid.training.optim import OptimConfig, Optimizer
from hybrid.training.step import Stepper

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Training:
    """What is trained, and how; on any device it is the same computation."""

    model: ModelConfig
    split: PackedTokens
    vocab: int
    block_size: int
    rows: int
    steps: int
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)

    def stepper(self, device: torch.device, precision: str, compiled: bool = False) -> Stepper:
        """Make the steps of a run on `device`, from the weights that every device begins with."""
        model = build_model(self.model, self.vocab, self.split.end_of_text, device, seed=0, copies=self.optim.copies)
        if compiled:
            compile_layers(model)
        return Stepper(
            model, Optimizer(model, self.optim), None, self.split, build_objective(ObjectiveConfig()),
            [self.block_size], self.optim, TrainerConfig(steps=self.steps, batch_tokens=self.rows * self.split.seq_len),
            seed=0, precision=precision_context(precision, device),
        )  # fmt: skip

    def losses(self, device: torch.device, precision: str, compiled: bool = False) -> list[float]:
        """Train, and return the loss of every step."""
        step = self.stepper(device, precision, compiled)
        return [result.loss for result in [step(number) for number in range(self.steps)]]


def random_text(vocab: int, seq_len: int, rows: int = 64) -> PackedTokens:
    """Return rows of random tokens."""
    n = seq_len * rows
    tokens = np.random.default_rng(0).integers(0, vocab - 1, n).astype(np.uint16)
    return PackedTokens(tokens, None, Counts(1, n, n, n, n), seq_len, vocab - 1)


@dataclass(frozen=True)
class SameRow:
    """A computation in float32, on the CPU and on the device."""

    what: str = column("what")
    same: str = column("CPU and device")
    difference: float = column("largest difference", ".1e")


class Same(Stage):
    """A tiny network trained, and texts written, on the CPU and on the device"""

    seconds: ClassVar[float] = 15

    def run(self, bench: Bench) -> Iterator[SameRow]:
        tiny = ModelConfig(dim=64, n_layers=2, n_heads=2, attention="sdpa")  # compiling FlexAttention takes too long
        next_token = dataclasses.replace(tiny, context="causal", prediction="next_token")
        split = random_text(97, 64)
        for name, model, size in (
            ("training, in_place, block size 8", tiny, 8),
            ("training, next_token, block size 8", next_token, 8),
            ("training, next_token, block size 1", next_token, 1),
            ("training, block size 64", tiny, 64),
        ):
            training = Training(model, split, 97, size, rows=4, steps=5)
            here, there = (torch.tensor(training.losses(d, "fp32")) for d in (CPU, bench.device))
            yield SameRow(name, f"losses {here[-1]:.5f}, {there[-1]:.5f}", float((here - there).abs().max()))
        for steps in (8, 2):
            here, there = (self._texts(tiny, d, steps) for d in (CPU, bench.device))
            equal = sum(a == b for a, b in zip(here, there, strict=True))
            name = f"generation, first_hitting, {8 // steps} tokens a step"
            yield SameRow(name, f"{equal} of {len(here)} tokens", 1 - equal / len(here))

    @staticmethod
    def _texts(config: ModelConfig, device: torch.device, steps: int) -> list[int]:
        model = build_model(config, 97, 96, device, seed=0)
        model.attend = select_backend("auto", device, training=False)
        decoder = {"name": "first_hitting", "steps": steps}
        engine = Engine(
            model, 64, GenerationConfig(8, decoder, stop_at_end=False), precision=precision_context("fp32", device)
        )
        return [token for text in engine.generate([[], [1, 2, 3]], 40).tokens for token in text]


@dataclass(frozen=True)
class CurveRow:
    """A run of real steps."""

    run: str = column("run")
    loss: dict[int, float] = column("step {}", ".4f")  # the mean of up to ten steps that end there
    difference: float = column("largest difference of these from the CPU", ".1e")
    seconds: float = column("seconds", ".1f")


class Curves(Stage):
    """Steps of a real run, beside those of a CPU"""

    seconds: ClassVar[float] = 50

    def run(self, bench: Bench) -> Iterator[CurveRow]:
        steps = bench.sizes.steps
        size = ModelConfig(dim=128, n_layers=4, n_heads=2) if bench.is_card else bench.sizes.model
        config = DataConfig(seq_len=256 if bench.is_card else 32)
        data, optim = prepare(config), OptimConfig(warmup_steps=steps // 10)
        training = Training(size, data.train, data.tokenizer.vocab_size, 16, 16 if bench.is_card else 2, steps, optim)
        ends = sorted({1, steps // 20 or 1, steps // 4, steps // 2, steps})
        reference: dict[int, float] = {}
        for name, device, precision, compiled in (
            ("CPU, fp32", CPU, "fp32", False),
            (f"{bench.device.type}, fp32", bench.device, "fp32", False),
            (f"{bench.device.type}, as a run: auto precision, layers compiled on a GPU", bench.device, "auto", True),
        ):
            started = time.perf_counter()
            losses = training.losses(device, precision, compiled and bench.is_card)
            seconds = time.perf_counter() - started
            curve = {end: float(np.mean(losses[max(end - 10, 0) : end])) for end in ends}
            reference = reference or curve
            difference = max(abs(curve[end] - reference[end]) for end in ends)
            yield CurveRow(name, curve, difference, seconds)
