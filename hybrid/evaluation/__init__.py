"""Evaluate a trained model: likelihoods of a split, decoders by the text that they write, answers that are right.

A new metric of generated text is a frozen dataclass with `measure` (see `base.Metric`) and a line in `METRICS`: then
`python -m hybrid.evaluate --decoders ...` prints its columns, and eval.json has its numbers. Of a metric of your own,
`--imports`, or `run.imports` of the run that is evaluated, names the module that registers it.
"""

from hybrid.evaluation.base import Column, Metric, Reading, Texts
from hybrid.evaluation.divergence import MauveLike
from hybrid.evaluation.diversity import Distinct, Entropy, Repetition, SelfBleu
from hybrid.evaluation.gen_ppl import GenPpl

METRICS: dict[str, type[Metric]] = {
    "entropy": Entropy,
    "distinct": Distinct,
    "repetition": Repetition,
    "self_bleu": SelfBleu,
    "gen_ppl": GenPpl,
    "mauve_like": MauveLike,
}

__all__ = ["METRICS", "Column", "Metric", "Reading", "Texts"]
