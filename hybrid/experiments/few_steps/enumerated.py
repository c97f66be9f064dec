"""Markov chains so short that all texts can be enumerated, and networks that are trained on them.

A text is one block. Nothing is left to chance when a network is judged but its own training.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybrid.config import Config, flatten, load_config
from hybrid.data.batches import PackedTokens
from hybrid.data.corpora.markov import Chain
from hybrid.data.packing import Counts
from hybrid.experiments.few_steps.laws import Canvases
from hybrid.experiments.few_steps.methods import METHODS, Method
from hybrid.model import Transformer
from hybrid.model.build import build_model
from hybrid.options import shown

log = logging.getLogger("hybrid.experiments.few_steps")
VOCAB, LENGTH, PEAK = 3, 5, 2.0
LANGUAGE = 4  # a seed whose tokens are nearly uniform one by one: what there is to know is in their dependence
TRAINING_TEXTS = 1 << 19
NETWORK = [
    *("model.dim=32", "model.n_layers=2", "model.n_heads=4", "model.hidden_dim=64"),
    *(f"data.seq_len={LENGTH}", f"objective.block_size={LENGTH}", "trainer.precision=fp32"),
    *("optim.lr=0.003", "optim.weight_decay=0", "optim.warmup_steps=100", "optim.final_lr_ratio=0.01"),
]
DISTILLED = 0.5
"""Share of the forwards of a method with a teacher that train the student; the others have trained the teacher."""


@dataclass(frozen=True)
class Source:
    """A chain of `order`; the law (x,) of its texts, and as many of them as training reads."""

    order: int

    @cached_property
    def chain(self) -> Chain:
        return Chain(VOCAB, self.order, PEAK, np.random.default_rng(LANGUAGE))

    @cached_property
    def canvases(self) -> Canvases:
        return Canvases(VOCAB, LENGTH)

    @cached_property
    def law(self) -> Tensor:
        return torch.from_numpy(self.chain.log_prob(self.canvases.texts.numpy())).exp()

    @cached_property
    def split(self) -> PackedTokens:
        texts = self.chain.sample(np.random.default_rng([LANGUAGE, 1]), TRAINING_TEXTS, LENGTH)
        n = texts.size
        return PackedTokens(texts.astype(np.uint16).flatten(), None, Counts(len(texts), n, n, n, n), LENGTH, VOCAB - 1)

    @property
    def identity(self) -> dict[str, Any]:
        return {"order": self.order, "vocab": VOCAB, "peak": PEAK, "language": LANGUAGE, "texts": TRAINING_TEXTS}


SOURCES = {"chain1": Source(1), "chain2": Source(2)}


@dataclass(frozen=True)
class Training:
    """Networks of one source in one folder, each trained once: `forwards` of a noisy text for each."""

    folder: Path
    name: str  # of the source
    forwards: int

    @property
    def source(self) -> Source:
        return SOURCES[self.name]

    def network(self, method_name: str, seed: int) -> Transformer:
        """Train the network of a method, if that is not done yet, or read it.

        Raises:
            ValueError: the folder holds one that was trained otherwise.
        """
        method = METHODS[method_name]
        if method.learns_from is None:
            return self._trained(method_name, method, seed, self.forwards, None)
        learnt_from = round(self.forwards * (1 - DISTILLED))
        teacher = self._trained(method.learns_from, METHODS[method.learns_from], seed, learnt_from, None)
        return self._trained(method_name, method, seed, self.forwards - learnt_from, teacher)

    def _trained(self, name: str, method: Method, seed: int, forwards: int, teacher: Transformer | None) -> Transformer:
        from hybrid.checkpoints.tensor_files import open_tensors, save_tensors
        from hybrid.storage.atomic import write_json_atomic
        from hybrid.storage.folders import new_folder

        config = configure(method, seed, forwards, has_teacher=teacher is not None)
        record = {**flatten(config), **self.source.identity}
        folder = self.folder / f"{self.name}-{name}-{forwards}-s{seed}"
        model = build_model(config.model, VOCAB, VOCAB - 1, torch.device("cpu"), seed=seed)
        if folder.exists():
            check_record(folder / "record.json", record)
            with open_tensors(folder / "model.safetensors") as file:
                model.load_state_dict({name: file.get_tensor(name) for name in model.state_dict()})
        else:
            log.info("training %s: %d steps", folder.name, config.trainer.steps)
            train(model, config, self.source, teacher)
            with new_folder(folder) as new:
                save_tensors(model.state_dict(), new / "model.safetensors")
                write_json_atomic(new / "record.json", record)
        return model.eval().requires_grad_(False)


def configure(method: Method, seed: int, forwards: int, has_teacher: bool) -> Config:
    """Configure the training of a network, of as many steps as there are forwards for."""
    steps = max(round(forwards / (method.rows * method.forwards_per_row)), 1)
    own = [f"trainer.steps={steps}", f"trainer.batch_tokens={method.rows * LENGTH}", f"run.seed={seed}"]
    own += [f"objective.teacher={method.learns_from}"] if has_teacher else []
    return load_config(None, [*NETWORK, *method.settings, *own], checked=False)


def train(model: Transformer, config: Config, source: Source, teacher: Transformer | None) -> None:
    """Make all steps of a configuration; a network with a teacher starts as the teacher is."""
    from hybrid.objectives import build_objective
    from hybrid.training.optim import Optimizer
    from hybrid.training.step import Stepper

    if teacher is not None:
        model.load_state_dict(teacher.state_dict(), strict=False)
    step = Stepper(
        model=model, optimizer=Optimizer(model, config.optim), ema=None, split=source.split,
        objective=build_objective(config.objective, teacher), block_sizes=[LENGTH], optim=config.optim,
        trainer=config.trainer, seed=config.run.seed, precision=contextlib.nullcontext,
    )  # fmt: skip
    for number in range(config.trainer.steps):
        result = step(number)
        if number % 1000 == 0:
            log.info("step %d: loss %.4f", number, result.loss)


def check_record(file: Path, wanted: dict[str, Any]) -> None:
    """Raise a ValueError if a network was trained otherwise than is wanted now."""
    from hybrid.storage.json_files import read_object

    was = read_object(file)
    changed = sorted(key for key in {*was, *wanted} if was.get(key) != wanted.get(key))
    if changed:
        key = changed[0]
        raise ValueError(
            f"{file}: was trained with {key} = {shown(was.get(key))}, and this experiment wants "
            f"{shown(wanted.get(key))}; choose another --folder, or remove {file.parent}"
        )
