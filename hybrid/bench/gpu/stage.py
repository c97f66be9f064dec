"""A stage measures one thing on a device, row by row; and the sizes that stages share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from hybrid.bench.training import Setting
from hybrid.model import ModelConfig, Transformer


@dataclass(frozen=True)
class Sizes:
    """What is measured: the network, its rows, and how often."""

    product: int  # rows and columns of the largest product
    copied: int  # bytes
    model: ModelConfig
    vocab: int
    seq_len: int
    block_size: int
    rows: tuple[int, ...]  # of a training step
    texts: tuple[int, ...]  # generated at once
    new_tokens: int
    repeats: int
    steps: int  # of training, beside that of a CPU
    chunks: tuple[int, ...]  # logits at a time


CARD = Sizes(
    product=8192, copied=2**31, model=ModelConfig(dim=768, n_layers=12, n_heads=12), vocab=50257, seq_len=1024,
    block_size=16, rows=(16, 32), texts=(1, 64), new_tokens=256, repeats=3, steps=200,
    chunks=(2**23, 2**26, 2**28, 2**29),
)  # fmt: skip
"""162M parameters, of which 85M are in the layers."""

TINY = Sizes(
    product=64, copied=2**16, model=ModelConfig(dim=16, n_layers=1, n_heads=2), vocab=32, seq_len=16, block_size=4,
    rows=(2,), texts=(1, 2), new_tokens=8, repeats=1, steps=4, chunks=(2**8, 2**10),
)  # fmt: skip
"""For a CPU: they show that a stage works, and nothing else."""


@dataclass(frozen=True)
class Bench:
    """Where stages run, and with which sizes.

    Attributes:
        traces: what the names of files begin with that a stage writes of its own; None: it writes none.
    """

    device: torch.device
    sizes: Sizes
    traces: Path | None = None

    @classmethod
    def on(cls, device: torch.device, traces: Path | None = None) -> Bench:
        return cls(device, CARD if device.type == "cuda" else TINY, traces)

    @property
    def is_card(self) -> bool:
        return self.device.type == "cuda"

    def setting(self, rows: int, compile: str = "off") -> Setting:
        """Return a training step of `rows` rows, in the precision that the device has."""
        s = self.sizes
        return Setting(s.model, s.vocab, s.seq_len, rows, s.block_size, "auto", str(self.device), compile)

    def models(self) -> dict[str, Transformer]:
        """Make the network of the measurements, by its prediction."""
        return {prediction: self.setting(1).build(prediction) for prediction in ("in_place", "next_token")}


class Stage(Protocol):
    """Measures one thing. The first line of its docstring heads its table.

    Attributes:
        seconds: what it may take on a card. It is not begun with less time left, and ends with the row in which that
            much is over.
    """

    seconds: ClassVar[float]

    def missing(self, bench: Bench) -> str | None:
        """Say what it lacks here; None: nothing."""
        return None

    def run(self, bench: Bench) -> Iterator[Any]:
        """Yield rows, instances of dataclasses as `hybrid.results.table` shows them, as they are measured."""
        ...


def needs_card(bench: Bench) -> str | None:
    """Say that there is no GPU, if there is none."""
    return None if bench.is_card else f"there is nothing to see on a {bench.device.type}"


def heading(stage: Stage) -> str:
    return (type(stage).__doc__ or "").partition("\n")[0].rstrip(".")
