"""Optimizers, learning-rate schedules, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hybrid.checkpoints.module_state import DamagedState
from hybrid.checkpoints.optimizer_state import flatten_optimizer, restore_optimizer
from hybrid.distributed import local
from hybrid.options import option, shown
from hybrid.training.muon import Muon
from hybrid.training.parallel import reshard


@dataclass
class OptimConfig:
    name: str = option("adamw", "optimizer; muon treats the matrices of the layers, AdamW the rest", ("adamw", "muon"))
    lr: float = option(1e-3, "peak learning rate of AdamW")
    muon_lr: float = option(0.02, "peak learning rate of Muon (matrices of the layers)")
    weight_decay: float = option(0.1, "decoupled weight decay of matrices (norms and embeddings have none)")
    beta1: float = option(0.9, "first-moment decay of AdamW")
    beta2: float = option(0.95, "second-moment decay of AdamW")
    momentum: float = option(0.95, "momentum of Muon")
    warmup_steps: int = option(100, "steps of linear warm-up")
    schedule: str = option("cosine", "shape after the warm-up", ("cosine", "wsd", "constant"))
    decay_fraction: float = option(0.2, "wsd: last fraction of the steps, in which the rate falls linearly")
    final_lr_ratio: float = option(0.1, "learning rate at the end, as a fraction of the peak")
    grad_clip: float = option(1.0, "largest gradient norm; 0 does not clip")
    ema_decay: float = option(0.0, "decay of the moving average of the weights; 0 keeps none")

    @property
    def copies(self) -> int:
        """Count the numbers kept for each weight: itself, its gradient, a moment or two, perhaps its average."""
        return (4 if self.name == "adamw" else 3) + bool(self.ema_decay)


def lr_factor(step: int, steps: int, config: OptimConfig) -> float:
    """Learning rate of step 0, 1, ..., steps-1 as a fraction of the peak."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "cosine":
        progress = (step - config.warmup_steps) / max(steps - 1 - config.warmup_steps, 1)
        shape = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    else:
        start = max(steps - round(config.decay_fraction * steps), config.warmup_steps)
        shape = 1.0 if step < start else max(0.0, (steps - step) / (steps - start + 1))
    return config.final_lr_ratio + (1 - config.final_lr_ratio) * shape


class Optimizer:
    """One or two torch optimizers that step together: AdamW for all, or Muon for the matrices of the layers.

    Muon (Jordan 2024) orthogonalises the momentum of a matrix; embeddings, head and norms are not for it.
    """

    def __init__(self, model: nn.Module, config: OptimConfig):
        self.config = config
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        matrices = [p for p, name in self.names.items() if p.ndim == 2 and name.startswith("layers.")]
        others = [p for p in self.names if p.ndim != 2 or p not in set(matrices)]
        decayed = {"params": matrices, "weight_decay": config.weight_decay}
        undecayed = {"params": others, "weight_decay": 0.0}
        groups = [undecayed] if config.name == "muon" else [decayed, undecayed]
        adamw = torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)
        self.parts: dict[str, torch.optim.Optimizer] = {"adamw": adamw}
        if config.name == "muon":
            muon = Muon([decayed], lr=config.muon_lr, momentum=config.momentum)
            for matrix in matrices:  # its first step would do so; made here, that one can be undone too
                muon.momentum_of(matrix)
            self.parts["muon"] = muon

    def set_rate(self, factor: float) -> dict[str, float]:
        """Set the learning rates to a fraction of their peaks, and return them by name."""
        rates = {"lr": factor * self.config.lr}
        if "muon" in self.parts:
            rates["muon_lr"] = factor * self.config.muon_lr
        for name, optimizer in self.parts.items():
            for group in optimizer.param_groups:
                group["lr"] = rates["muon_lr" if name == "muon" else "lr"]
        return rates

    def step(self, skip: Tensor) -> None:
        """Update the weights; where `skip`, () float32, is 1, they and all states stay what they are.

        That is decided on their device, without the host waiting for it. AdamW's kernel can do so; what Muon changes is
        copied first, and put back.
        """
        adamw, muon = self.parts["adamw"], self.parts.get("muon")
        adamw.found_inf = skip  # type: ignore[attr-defined]  # where torch's gradient scaler puts it
        adamw.step()
        if muon is None:
            return
        changing = [local(t.detach()) for p, state in muon.state.items() for t in (p, state["momentum_buffer"])]
        before = [t.clone() for t in changing]
        muon.step()
        for t, old in zip(changing, before, strict=True):
            torch.where(skip > 0, old, t, out=t)

    def zero_grad(self) -> None:
        for optimizer in self.parts.values():
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """Return tensors by name, and the rest for JSON."""
        tensors, meta = {}, {}
        for name, optimizer in self.parts.items():
            own, meta[name] = flatten_optimizer(optimizer, self.names)
            tensors |= {f"{name}/{key}": tensor for key, tensor in own.items()}
        return tensors, meta

    def restore(self, tensors: Mapping[str, Tensor], meta: Any) -> None:
        """Undo `state`.

        Raises:
            ValueError: it is of another optimizer, or does not fit; one line.
        """
        if not isinstance(meta, dict):
            raise DamagedState(
                f"optimizer: the checkpoint's state.json has {shown(meta)} instead of what describes one"
            )
        unknown = [name for name in tensors if name.split("/")[0] not in self.parts]
        if set(meta) != set(self.parts):
            raise ValueError(
                f"optim.name: the checkpoint was trained with {'/'.join(sorted(meta)) or 'none'}, not "
                f"{self.config.name!r}; set it back, or start from the weights alone with trainer.init_from"
            )
        if unknown:
            raise DamagedState(f"optimizer: the checkpoint holds {shown(unknown)}, which no part of it has")
        for name, optimizer in self.parts.items():
            restore_optimizer(optimizer, self.names, tensors, meta[name], prefix=f"{name}/")


class EMA:
    """average <- decay * average + (1 - decay) * weights, after each step.

    The decay is min(`decay`, (1 + step) / (10 + step)), so that the start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.shadow = {name: p.detach().clone() for name, p in model.named_parameters()}

    def update(self, step: int, skip: Tensor) -> None:
        """Follow the weights; where `skip`, () float32, is 1, the average stays what it is."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [local(t) for t in self.shadow.values()]
        weights = [local(p.detach()) for p in self.model.parameters()]
        share = (1 - decay) * (1 - skip.to(weights[0].dtype))
        torch._foreach_lerp_(averages, weights, [share] * len(weights))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights inside the block."""
        own = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        try:
            self._copy(self.shadow)
            yield
        finally:
            reshard(self.model)
            self._copy(own)

    @torch.no_grad()
    def _copy(self, weights: dict[str, Tensor]) -> None:
        """Copy in place: the memory of a parameter belongs to whoever shards it over ranks."""
        for name, p in self.model.named_parameters():
            p.copy_(weights[name])


@contextmanager
def averaged(model: nn.Module, ema: EMA | None) -> Iterator[None]:
    """Give the model the averaged weights inside the block, where there are any."""
    with ema.applied() if ema is not None else nullcontext():
        yield
    reshard(model)
