"""Optimizers and learning-rate schedules."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid.options import option


@dataclass
class OptimConfig:
    name: str = option("adamw", "optimizer; muon treats the matrices of the blocks, AdamW the rest", ("adamw", "muon"))
    lr: float = option(1e-3, "peak learning rate of AdamW")
    muon_lr: float = option(0.02, "peak learning rate of Muon (matrices of the blocks)")
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
