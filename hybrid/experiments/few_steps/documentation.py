"""Documentation in byte pairs, which no law is known of: an evaluation model judges what is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from hybrid.device import precision_context
from hybrid.evaluation.base import EvaluationModel
from hybrid.evaluation.comparison import Comparison
from hybrid.evaluation.evaluation_model import load_evaluation_model
from hybrid.evaluation.setting import setting_for
from hybrid.experiments.few_steps.laws import Steps
from hybrid.experiments.few_steps.methods import LATENTS, Spec
from hybrid.experiments.few_steps.sampled import Sampled
from hybrid.experiments.few_steps.source import Caption, Figures, Written, interpolated
from hybrid.experiments.measuring.subject import validation_of
from hybrid.likelihoods import LikelihoodMethod
from hybrid.likelihoods.latent import LatentBound
from hybrid.likelihoods.orders import Policy
from hybrid.likelihoods.rows import by_row
from hybrid.lm import LanguageModel

SHOWN = ("gen_ppl", "entropy", "self_bleu")


@dataclass(frozen=True)
class Documentation(Sampled):
    """Python's documentation. A low perplexity may be sharpening: it is read beside entropy and self-BLEU."""

    name = "pydocs"
    config = "configs/bytes.yaml"
    overrides = ("data.tokenizer=bpe", "data.vocab_size=2048", "data.seq_len=128", "eval.sample_prompts=[]")
    block_size, rows, default_forwards = 16, 32, 40_000
    needs_judge = True
    captions: ClassVar[dict[str, Caption]] = {
        "gen_ppl": Caption("generative perplexity", 1),
        "entropy": Caption("entropy of a text, nats"),
        "self_bleu": Caption("self-BLEU"),
        "bound": Caption("bound of the NLL of other text under this sampler, nats per token"),
        "policy": Caption("NLL of other text in as many steps of `margin` (policy likelihood), nats per token"),
        "forwards": Caption("forwards of a block", 2),
    }
    texts: ClassVar[int] = 64
    rows_read: ClassVar[int] = 16  # of the validation split
    tried: ClassVar[tuple[float, ...]] = (0.3, 0.5, 0.7, 0.85, 1.0, 1.25)

    @cached_property
    def evaluation_model(self) -> EvaluationModel:
        assert self.judge_run is not None
        return load_evaluation_model(self.judge_run, "cpu")

    def check(self, methods: Sequence[str]) -> None:
        super().check(methods)
        try:
            _ = self.evaluation_model
        except ValueError as error:
            raise ValueError(f"--{error}") from None  # judge: what is wrong with it

    def plain(self, steps: int) -> Spec:
        return {"name": "first_hitting", "steps": steps}

    def judge(self, lm: LanguageModel, options: dict[str, Any]) -> Figures:
        generation = {key: value for key, value in options.items() if key != "decoder"}
        length = lm.config.data.seq_len
        setting = setting_for(length, length, 0, samples=self.texts, **generation)
        found = Comparison(lm, validation_of(lm), setting, self.evaluation_model).line(
            self.block_size, "", options["decoder"]
        )
        shown = {name: found.metrics[name] for name in SHOWN}
        assert found.nfe_per_token is not None
        return {**shown, **self.likelihoods(lm, options), "forwards": found.nfe_per_token * self.block_size}

    def likelihoods(self, lm: LanguageModel, options: dict[str, Any]) -> Figures:
        """Score text that others wrote, where the sampler has a likelihood: that of independent tokens in sets at
        random, with random numbers in MASK or without; and without them in the order of a decoder."""
        spec = options["decoder"]
        if spec != self.plain(spec["steps"]) or options["temperature"] != 1 or options.get("latent") == "keep":
            return {}

        def nats(method: LikelihoodMethod) -> float:
            found = by_row(
                lm.model, validation_of(lm), self.block_size, method, rows=self.rows_read, draws=1,
                precision=precision_context("fp32", lm.device),
            )  # fmt: skip
            return float(found.nll.sum()) / int(found.tokens.sum())

        bound = {"bound": nats(LatentBound(steps=spec["steps"], latents=LATENTS))}
        if lm.model.config.latent:
            return bound
        return {**bound, "policy": nats(Policy({"name": "margin", "steps": spec["steps"]}))}

    def temperatures(self, plain: Written, steps: Steps) -> dict[str, float]:
        return {f"plain, temperature {temperature:g}": temperature for temperature in self.tried if temperature != 1}

    def same_entropy(self, plain: Written, steps: Steps, wanted: float) -> float:
        return interpolated([(t, plain(steps, t)["entropy"]) for t in self.tried], wanted)

    def describe(self) -> str:
        return (
            f"Python's documentation in 2,048 byte pairs ({self.config}), blocks of {self.block_size}; {self.texts} "
            f"texts of a row, read by `{self.judge_run}`; likelihoods are of {self.rows_read} rows of the validation "
            f"split, the bound with {LATENTS} draws of a latent. {self.budget:,} forwards a network."
        )
