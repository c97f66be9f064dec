"""Metrics of generated text that need no second model: how diverse it is, and how much it repeats itself.

All of them depend on the length of the texts, and `distinct` and `self_bleu` on their number too. Compare only texts of
the same number, length and tokenizer, and put the values of real text of that number and length beside them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from hybrid.evaluation.base import Column, Metric, Texts
from hybrid.options import option

NGRAM = 4
"""Length of the n-grams of `repetition`."""

MAX_BLEU_TEXTS = 64
"""Self-BLEU compares each text with all others, so it takes the first of a large set only."""

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Entropy(Metric):
    """Unigram entropy of a text, in nats."""

    columns: ClassVar[tuple[Column, ...]] = (Column("entropy", "entropy", ".3f"),)

    def measure(self, texts: Texts, reference: Texts) -> dict[str, float]:
        return {"entropy": entropy(texts.rows)}


@dataclass(frozen=True)
class Distinct(Metric):
    """Share of the n-grams of all texts that are different, for n from 1 to 3."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column("dist-1", "distinct_1", ".3f"),
        Column("dist-2", "distinct_2", ".3f"),
    )

    def measure(self, texts: Texts, reference: Texts) -> dict[str, float]:
        return {f"distinct_{n}": distinct(texts.rows, n) for n in (1, 2, 3)}


@dataclass(frozen=True)
class Repetition(Metric):
    """Share of a text's 4-grams that occurred before in the same text."""

    columns: ClassVar[tuple[Column, ...]] = (Column("rep-4", "repetition", ".3f"),)

    def measure(self, texts: Texts, reference: Texts) -> dict[str, float]:
        return {"repetition": repetition(texts.rows)}


@dataclass(frozen=True)
class SelfBleu(Metric):
    """BLEU-4 of each text against all the others; needs sacrebleu."""

    columns: ClassVar[tuple[Column, ...]] = (Column("selfBLEU", "self_bleu", ".3f"),)
    most: int = option(MAX_BLEU_TEXTS, "texts that are compared, the first ones")

    def check(self) -> None:
        load_bleu()

    def measure(self, texts: Texts, reference: Texts) -> dict[str, float]:
        return {"self_bleu": self_bleu(texts.texts, self.most)}


def entropy(rows: Rows) -> float:
    """Unigram entropy of a text in nats, -sum_v (c_v / n) ln(c_v / n) over the counts c_v of its n tokens, averaged
    over the texts that have a token.

    The 'entropy' that stands beside generative perplexity in the field (Zheng et al. 2409.02908, section 5; MDLM's and
    BD3-LM's samples). At most ln(min(n, vocabulary)); it falls when few tokens are used again and again.
    """
    return _mean([_entropy(row) for row in rows if len(row)])


def _entropy(row: Sequence[int]) -> float:
    return -sum(count / len(row) * math.log(count / len(row)) for count in Counter(row).values()) + 0.0


def distinct(rows: Rows, n: int) -> float:
    """Different n-grams / all n-grams, over all texts together (Li et al. 2016, 'A diversity-promoting objective')."""
    counts = Counter(gram for row in rows for gram in _ngrams(row, n))
    return len(counts) / counts.total() if counts else math.nan


def repetition(rows: Rows, n: int = NGRAM) -> float:
    """Share of a text's n-grams that occurred before in the same text, averaged over texts that have an n-gram.

    seq-rep-n of Welleck et al. 2020 ('Neural text generation with unlikelihood training', section 6): 1 - different /
    all n-grams. 0: nothing is repeated.
    """
    grams = [list(_ngrams(row, n)) for row in rows]
    return _mean([1 - len(set(of_row)) / len(of_row) for of_row in grams if of_row])


def self_bleu(texts: Sequence[str], most: int = MAX_BLEU_TEXTS) -> float:
    """BLEU-4 of each text against all the others as references, averaged, in [0, 1]: lower is more diverse.

    Zhu et al. 2018 ('Texygen', section 3.4). Sentence BLEU of sacrebleu, with its default smoothing and its 13a words,
    of at most the first `most` texts.

    Raises:
        ValueError: sacrebleu is not installed.
    """
    bleu = load_bleu()
    texts = texts[:most]
    if len(texts) < 2:
        return math.nan
    scores = [bleu.sentence_score(text, [*texts[:i], *texts[i + 1 :]]).score for i, text in enumerate(texts)]
    return _mean(scores) / 100


def load_bleu() -> Any:
    """Make the metric of sacrebleu, for single sentences. Raises a ValueError if it is not installed."""
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError:
        raise ValueError("self-BLEU: sacrebleu is not installed; pip install 'hybrid[quality]'") from None
    return BLEU(effective_order=True)


def _ngrams(row: Sequence[int], n: int) -> Iterator[tuple[int, ...]]:
    return zip(*(row[i:] for i in range(n)), strict=False)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
