"""Markov chains so short that all texts can be enumerated, and networks that are trained on them.

A text is one block. Nothing is left to chance when a network is judged but its own training.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from hybrid.config import Config, flatten, load_config
from hybrid.data.batches import PackedTokens
from hybrid.data.corpora.markov import Chain
from hybrid.data.packing import Counts
from hybrid.experiments.few_steps import laws
from hybrid.experiments.few_steps.laws import Canvases, Steps
from hybrid.experiments.few_steps.methods import METHODS, PLAIN, predictions
from hybrid.experiments.few_steps.source import BEST, SHARPENED, Caption, Figures, Source, Written, best_of, bisected
from hybrid.experiments.few_steps.stages import Stage, stages
from hybrid.experiments.measuring.remembered import refuse_other_settings
from hybrid.model import Transformer
from hybrid.model.build import build_model

log = logging.getLogger("hybrid.experiments.few_steps")
VOCAB, LENGTH, PEAK = 3, 5, 2.0
LANGUAGE = 4  # a seed whose tokens are nearly uniform one by one: what there is to know is in their dependence
TRAINING_TEXTS = 1 << 19
ROWS = 256  # of a batch
NETWORK = [
    *("model.dim=32", "model.n_layers=2", "model.n_heads=4", "model.hidden_dim=64"),
    *(f"data.seq_len={LENGTH}", f"objective.block_size={LENGTH}", "trainer.precision=fp32"),
    *("optim.lr=0.003", "optim.weight_decay=0", "optim.warmup_steps=100", "optim.final_lr_ratio=0.01"),
]
TEMPERATURES = (0.02, 50.0)
"""Between which one is looked for."""
TRIED = 40
"""Temperatures between them, when the best is looked for."""


@dataclass(frozen=True)
class Enumerated(Source):
    """A chain of `order`. Its texts, of one block, are few enough to be enumerated."""

    order: ClassVar[int]
    captions: ClassVar[dict[str, Caption]] = {
        "variation": Caption("total variation to the source"),
        "nll": Caption("NLL under the source, nats per token"),
        "entropy": Caption("entropy, nats per token"),
        "forwards": Caption("forwards of a text, on average", 2),
    }
    default_forwards = 2_000_000

    @cached_property
    def chain(self) -> Chain:
        return Chain(VOCAB, self.order, PEAK, np.random.default_rng(LANGUAGE))

    @cached_property
    def canvases(self) -> Canvases:
        return Canvases(VOCAB, LENGTH)

    @cached_property
    def law(self) -> Tensor:
        """(x,)"""
        return torch.from_numpy(self.chain.log_prob(self.canvases.texts.numpy())).exp()

    @cached_property
    def split(self) -> PackedTokens:
        """Draw the texts that training reads."""
        texts = self.chain.sample(np.random.default_rng([LANGUAGE, 1]), TRAINING_TEXTS, LENGTH)
        n = texts.size
        return PackedTokens(texts.astype(np.uint16).flatten(), None, Counts(len(texts), n, n, n, n), LENGTH, VOCAB - 1)

    def written_by(self, method: str, seed: int) -> Written:
        entry, network = METHODS[method], self.network(method, seed)
        if method == PLAIN:
            log_probs = predictions(network, self.canvases)
            return self._figures(PLAIN, lambda t: self.canvases.product(laws.tempered(log_probs, t)))
        seen = entry.look(network, self.canvases)
        return self._figures(method, lambda temperature: seen)

    def _figures(self, method: str, seen_at: Callable[[float], Any]) -> Written:
        entry = METHODS[method]

        @cache
        def figures(steps: Steps, temperature: float) -> Figures:
            law = entry.law(seen_at(temperature), self.canvases, steps)
            return {**laws.judged(law, self.law, LENGTH), "forwards": entry.passes(steps, self.canvases)}

        return figures

    def references(self, steps: Steps) -> dict[str, Figures]:
        log_probs = laws.conditionals(self.canvases, self.law)
        perfect = self._figures(PLAIN, lambda t: self.canvases.product(laws.tempered(log_probs, t)))
        return {"plain, perfect network": perfect(steps, 1.0)}

    def temperatures(self, plain: Written, steps: Steps) -> dict[str, float]:
        low, high = TEMPERATURES
        grid = [low * (high / low) ** (i / (TRIED - 1)) for i in range(TRIED)]
        same = self.same_entropy(plain, steps, laws.entropy(self.law) / LENGTH)
        return {SHARPENED: same, BEST: best_of(self, plain, steps, [*grid, 1.0])}

    def same_entropy(self, plain: Written, steps: Steps, wanted: float) -> float:
        return bisected(lambda temperature: plain(steps, temperature)["entropy"], wanted, *TEMPERATURES)

    def describe(self) -> str:
        return (
            f"A Markov chain of {VOCAB} symbols and order {self.order}, texts of {LENGTH} tokens, one block. All texts "
            "and all partly written ones are enumerated: no figure has noise but that of training. K: cells of the "
            "linear time grid; B: one token a step, in a random order. `copula` and `arpc` divide a block evenly, "
            "and need one more forward once a text, for its first token. Nothing stands before the text, and all MASKs "
            "that see nothing else are alike: only random numbers of their own (`latent`, not `latent_block`) tell "
            f"positions apart in one step. {self.budget:,} forwards a network."
        )

    def network(self, method_name: str, seed: int) -> Transformer:
        """Train the network of a method, if that is not done yet, or read it.

        Raises:
            ValueError: the folder holds one that was trained otherwise.
        """
        network = None
        for stage in stages(method_name, self.budget):
            network = self._trained(stage, seed, network)
        assert network is not None
        return network

    def _trained(self, stage: Stage, seed: int, start: Transformer | None) -> Transformer:
        from hybrid.checkpoints.tensor_files import open_tensors, save_tensors
        from hybrid.storage.atomic import write_json_atomic
        from hybrid.storage.folders import new_folder
        from hybrid.storage.json_files import read_object

        own = [f"trainer.steps={stage.steps(ROWS)}", f"trainer.batch_tokens={stage.rows(ROWS) * LENGTH}"]
        own += [f"run.seed={seed}"] + [f"objective.teacher={stage.teacher}"] * (stage.teacher is not None)
        config = load_config(None, [*NETWORK, *stage.settings, *own], checked=False)
        chain = {"order": self.order, "vocab": VOCAB, "peak": PEAK, "language": LANGUAGE, "texts": TRAINING_TEXTS}
        record = {**flatten(config), **chain}
        folder = Path(self.folder) / f"chain{self.order}-{stage.name}-s{seed}"
        model = build_model(config.model, VOCAB, VOCAB - 1, torch.device("cpu"), seed=seed)
        if folder.exists():
            recorded = folder / "record.json"
            refuse_other_settings(recorded, read_object(recorded), record, remove=folder)
            with open_tensors(folder / "model.safetensors") as file:
                model.load_state_dict({key: file.get_tensor(key) for key in model.state_dict()})
        else:
            log.info("training %s: %d steps", folder.name, config.trainer.steps)
            if start is not None:
                model.load_state_dict(start.state_dict(), strict=False)
            train(model, config, self.split, teacher=start if stage.method.is_taught else None)
            with new_folder(folder) as new:
                save_tensors(model.state_dict(), new / "model.safetensors")
                write_json_atomic(new / "record.json", record)
        return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Chain1(Enumerated):
    """Each token depends on the one before."""

    order = 1


@dataclass(frozen=True)
class Chain2(Enumerated):
    """Each token depends on the two before."""

    order = 2


def train(model: Transformer, config: Config, split: PackedTokens, teacher: Transformer | None) -> None:
    """Make all steps of a configuration."""
    from hybrid.objectives import build_objective
    from hybrid.training.optim import Optimizer
    from hybrid.training.step import Stepper

    step = Stepper(
        model=model, optimizer=Optimizer(model, config.optim), ema=None, split=split,
        objective=build_objective(config.objective, teacher), block_sizes=[LENGTH], optim=config.optim,
        trainer=config.trainer, seed=config.run.seed, precision=contextlib.nullcontext,
    )  # fmt: skip
    for number in range(config.trainer.steps):
        result = step(number)
        if number % 1000 == 0:
            log.info("step %d: loss %.4f", number, result.loss)
