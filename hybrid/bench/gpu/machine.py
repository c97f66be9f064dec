"""The card: what it is, and what it reaches at best."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from hybrid.bench.cost import matmul_rate
from hybrid.bench.gpu.stage import Bench, Stage
from hybrid.model.build import n_parameters
from hybrid.results import publish
from hybrid.results.environment import commit_of, environment
from hybrid.results.table import column
from hybrid.results.timing import interleave


def head(bench: Bench) -> dict[str, str]:
    """Say what stages run on and what they measure, and how the page was made."""
    device, sizes = bench.device, bench.sizes
    facts, parameters = environment(device), n_parameters(sizes.model, sizes.vocab)
    return {
        "made by": publish.provenance(publish.command_of("hybrid.bench"), [0], str(device)),
        "device": facts["device"] if device.type == "cuda" else f"{facts['processor']} (no GPU, tiny sizes)",
        "driver": _driver() if device.type == "cuda" else "none",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}",
        "cuDNN": str(torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else "none"),
        "commit": commit_of(facts),
        "network": f"{parameters:,} parameters, dim {sizes.model.dim}, {sizes.model.n_layers} layers, {sizes.vocab:,} "
        f"ids; rows of {sizes.seq_len:,} tokens, block size {sizes.block_size}",
    }


def _driver() -> str:
    """Ask for the version of the driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


@dataclass(frozen=True)
class CeilingRow:
    """A rate that the device reaches at best."""

    what: str = column("what")
    rate: float = column("rate", ".4g")
    unit: str = column("unit")


class Ceilings(Stage):
    """What the card reaches at best."""

    seconds: ClassVar[float] = 8

    def run(self, bench: Bench) -> Iterator[CeilingRow]:
        size = bench.sizes.product
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
            rate = matmul_rate(bench.device, dtype, size)
            yield CeilingRow(f"product of {size:,} x {size:,}, {name}", rate / 1e12, "TFLOP/s")
        yield CeilingRow("copy, bytes read and written", copy_rate(bench.device, bench.sizes.copied) / 1e9, "GB/s")


def copy_rate(device: torch.device, n_bytes: int) -> float:
    """Measure the bytes/s of a copy, those read and those written, the best of several."""
    source = torch.zeros(n_bytes // 4, device=device)
    target = torch.empty_like(source)
    timing = interleave({"copy": lambda: target.copy_(source)}, 5, device)["copy"]
    return 2 * n_bytes / min(timing.seconds)
