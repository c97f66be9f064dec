"""Sources whose laws are too large to be enumerated: networks are runs of train.py, whose texts are judged."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, ClassVar

import numpy as np

from hybrid.config import load_config
from hybrid.data.corpora.markov import BlockMarkov
from hybrid.decoding.engine import generate_shared, n_batches
from hybrid.experiments.few_steps.laws import ONE_BY_ONE, Steps
from hybrid.experiments.few_steps.methods import METHODS, Spec
from hybrid.experiments.few_steps.source import (
    BEST,
    SHARPENED,
    Caption,
    Figures,
    Source,
    Written,
    best_of,
    interpolated,
    listing,
)
from hybrid.experiments.few_steps.stages import Stage, stages
from hybrid.experiments.measuring.trained import settings, train
from hybrid.lm import LanguageModel, load
from hybrid.runs.run_folder import folder_of

log = logging.getLogger("hybrid.experiments.few_steps")
STARTED = 0.1
"""Learning rates of what starts from a trained network, as a share of those that it was trained with."""


@dataclass(frozen=True)
class Sampled(Source):
    """A configuration, blocks of `block_size` of it, and `rows` of a batch."""

    name: ClassVar[str]
    config: ClassVar[str]
    overrides: ClassVar[tuple[str, ...]] = ()
    block_size: ClassVar[int]

    def network(self, method: str, seed: int) -> LanguageModel:
        """Train the stages of a method that are not done yet.

        Raises:
            ValueError: a run's folder holds a run of other settings.
        """
        folders: dict[str, Any] = {}
        todo = stages(method, self.budget)
        for stage in todo:
            config = self._configure(stage, seed, folders)
            folders[stage.name] = folder_of(config.run)
            log.info("training %s: %d steps", folders[stage.name], stage.steps(self.rows))
            train(config, folders[stage.name], stage.steps(self.rows))
        return load(folders[todo[-1].name], device="cpu")

    def _configure(self, stage: Stage, seed: int, folders: dict[str, Any]) -> Any:
        source = [*self.overrides, *self.corpus_settings()]
        base = load_config(self.config, source)
        own = [f"objective.block_size={self.block_size}", "objective.draws=1"]
        own += [f"trainer.batch_tokens={stage.rows(self.rows) * base.data.seq_len}"]
        own += [f"trainer.steps={stage.steps(self.rows)}"]
        # Smaller batches have noisier gradients, and bear smaller steps; what is learned already is to be kept.
        slower = math.sqrt(stage.method.batch) if stage.start is None else STARTED
        if slower != 1:
            rates = {"optim.lr": base.optim.lr, "optim.muon_lr": base.optim.muon_lr}
            own += [f"{key}={rate * slower:.3g}" for key, rate in rates.items()]
        if stage.start is not None:
            own.append(f"trainer.init_from={folders[stage.start]}")
        if stage.teacher is not None:
            own.append(f"objective.teacher={folders[stage.teacher]}")
        named = settings(self.folder, f"{self.name}-{stage.name}", seed)
        return load_config(self.config, [*source, *own, *stage.settings, *named])

    def corpus_settings(self) -> list[str]:
        """Write what training reads, where it is no corpus of the table, and return the settings that name it."""
        return []

    def written_by(self, method: str, seed: int) -> Written:
        lm, entry = self.network(method, seed), METHODS[method]

        @cache
        def figures(steps: Steps, temperature: float) -> Figures:
            n = self.block_size if steps == ONE_BY_ONE else int(steps)
            options = {"decoder": entry.decoder(self.plain(n), n), "temperature": temperature, "seed": seed}
            return self.judge(lm, {**options, **entry.generation})

        return figures

    @abstractmethod
    def plain(self, steps: int) -> Spec:
        """Say how plain texts are written."""

    @abstractmethod
    def judge(self, lm: LanguageModel, options: dict[str, Any]) -> Figures:
        """Write with the options of a generation, and say how good it is."""


@dataclass(frozen=True)
class Words(Sampled):
    """Words of 8 letters, a chain of them; a block is a word, which no left-to-right rule spells."""

    name = "block_markov"
    config = "configs/block_markov.yaml"
    overrides = (
        *("data.corpus.block=8", "data.corpus.words=64", "model.dim=128", "model.n_layers=4"),
        "eval.sample_prompts=[]",
    )
    block_size, rows, default_forwards = 8, 64, 40_000
    captions: ClassVar[dict[str, Caption]] = {
        "variation": Caption("total variation of the law of a block"),
        "words": Caption("share of the blocks that are words"),
        "entropy": Caption("entropy of the law of a block, nats per token"),
        "forwards": Caption("forwards of a block", 2),
    }
    texts: ClassVar[int] = 256
    tried: ClassVar[tuple[float, ...]] = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5)

    @cached_property
    def corpus(self) -> BlockMarkov:
        from hybrid.data.corpora import CORPORA
        from hybrid.options import build

        return build(CORPORA, load_config(self.config, self.overrides).data.corpus, "data.corpus")

    def plain(self, steps: int) -> Spec:
        return {"name": "first_hitting", "steps": steps}

    def judge(self, lm: LanguageModel, options: dict[str, Any]) -> Figures:
        n, length, size = self.texts, self.corpus.length, self.block_size
        engine = lm.engine(size, stop_at_end=False, **options)
        result = generate_shared(engine, [[]] * n, length)
        texts = [[lm.tokenizer.decode([token]) for token in row] for row in result.tokens]
        blocks = ["".join(text[i : i + size]) for text in texts for i in range(0, length, size)]
        return {**self.law_of(blocks), "forwards": result.nfe / n_batches(n) / (length // size)}

    def law_of(self, blocks: Sequence[str]) -> Figures:
        """Compare the law of blocks, as they are counted, with the source's."""
        counted, n = Counter(blocks), len(blocks)
        law = dict(zip(self.corpus.spelling, self.corpus.chain.stationary, strict=True))
        shared = sum(min(counted[word] / n, p) for word, p in law.items())
        share = np.array([count / n for count in counted.values()])
        entropy = float(-(share * np.log(share)).sum()) / self.block_size
        return {"variation": 1 - shared, "words": sum(counted[word] for word in law) / n, "entropy": entropy}

    def references(self, steps: Steps) -> dict[str, Figures]:
        return {"as many texts of the source": self.law_of(self.real)}

    @cached_property
    def real(self) -> list[str]:
        n = self.corpus.length // self.block_size
        symbols = self.corpus.chain.sample(np.random.default_rng(0), self.texts, n)
        return [self.corpus.spelling[symbol] for symbol in symbols.flatten()]

    def temperatures(self, plain: Written, steps: Steps) -> dict[str, float]:
        same = self.same_entropy(plain, steps, self.law_of(self.real)["entropy"])
        return {SHARPENED: same, BEST: best_of(self, plain, steps, self.tried)}

    def same_entropy(self, plain: Written, steps: Steps, wanted: float) -> float:
        return interpolated([(t, plain(steps, t)["entropy"]) for t in self.tried], wanted)

    def describe(self) -> str:
        return (
            f"A chain of 64 words of {self.block_size} letters ({self.config}), a block is a word. {self.texts} texts "
            f"of {self.corpus.length} letters are counted, so the source itself is not at 0, and no entropy is above "
            f"{math.log(len(self.real)) / self.block_size:.3f}. Temperatures tried with plain: {listing(self.tried)}. "
            f"{self.budget:,} forwards a network."
        )
