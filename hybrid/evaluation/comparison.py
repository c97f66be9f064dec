"""Compare decoders: what each costs, and what the metrics say of its texts.

Every decoder generates the same number of texts of the same length from the same prompts, in the same batches, and goes
on behind end-of-text tokens. Pieces of real text of that number and length are measured beside them: that is what the
numbers of good text look like. Only the new tokens of a text are measured.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Any

from hybrid.data.batches import PackedTokens
from hybrid.decoding.engine import generate_shared, n_batches
from hybrid.distributed import ALONE, Ranks
from hybrid.evaluation.answers import Answers, score
from hybrid.evaluation.base import EvaluationModel, Metric, Texts
from hybrid.evaluation.results import REAL, DecoderResult, metrics_for
from hybrid.evaluation.setting import Setting
from hybrid.lm import LanguageModel
from hybrid.options import shown
from hybrid.text.continuation import continuation

if TYPE_CHECKING:
    from hybrid.decoding.engine import Engine

log = logging.getLogger(__name__)


def measured(metric: Metric, texts: Texts, reference: Texts) -> dict[str, float]:
    """Measure texts by a metric.

    Raises:
        ValueError: it gave something else than numbers by name; the message names the metric.
    """
    numbers = metric.measure(texts, reference)
    name = f"metric {type(metric).__name__}: measure gave"
    if not isinstance(numbers, Mapping):
        raise ValueError(f"{name} a {type(numbers).__name__}; it must be a dict of numbers by name")
    for key, value in numbers.items():
        if not isinstance(value, Real):
            raise ValueError(f"{name} {shown(value)} as {key!r}; it must be a number, NaN where there is no value")
    return dict(numbers)


@dataclass
class Comparison:
    """Generate with each decoder and measure its texts.

    Args:
        policy: (block size, label, decoder) -> the NLL of its order in nats per token, None if it has none.
        rows: how many prompts are answered where the split has prompts with completions (0: all).
    """

    lm: LanguageModel
    split: PackedTokens
    setting: Setting
    evaluation_model: EvaluationModel | None = None
    policy: Callable[[int, str, Any], float | None] = lambda size, label, decoder: None
    rows: int = 0
    batch_rows: int = 64
    ranks: Ranks = ALONE
    has_answers: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        n, n_rows = self.setting.samples, self.split.n_rows
        # Spread over the split. If there are enough, every second one is kept back, to see what two samples of real
        # text make of each other.
        wanted = 2 * n if n_rows >= 2 * n else min(n, n_rows)
        index = [i * n_rows // wanted for i in range(wanted)]
        first, second = (index[::2], index[1::2]) if wanted == 2 * n else (index, [])
        if len(first) < n:
            log.warning("--samples: the split has %d rows, so the real text is %d pieces", n_rows, n_rows)
        self.own_prompts, self.pieces = self._cut(first)
        self.other_prompts, self.others = self._cut(second)
        self.prompts = [self.own_prompts[i % len(first)] for i in range(n)]
        self.has_answers = self.split.is_target is not None

    def _cut(self, index: Sequence[int]) -> tuple[list[list[int]], list[list[int]]]:
        """Prompts and real continuations of some rows of the split."""
        start, stop = self.setting.prompt_tokens, self.setting.prompt_tokens + self.setting.new_tokens
        tokens = self.split.rows(index).tokens
        return tokens[:, :start].tolist(), tokens[:, start:stop].tolist()

    def lines(self, sizes: Sequence[int], decoders: dict[str, Any]) -> list[DecoderResult]:
        """Real text first, then every decoder at every block size."""
        result = [self.real_text()]
        for size in sizes:
            self._warm_up(size)
            result += [self.line(size, label, decoder) for label, decoder in decoders.items()]
        return result

    def real_text(self) -> DecoderResult:
        """Measure real text, against a second sample of it: the best that can be hoped for."""
        log.info("%s: %d pieces of %d tokens", REAL, len(self.pieces), self.setting.new_tokens)
        second = self._texts(self.other_prompts, self.others) if self.others else None
        numbers: dict[str, float] = {}
        for metric in metrics_for(self.evaluation_model):
            texts = second if metric.needs_reference else self.reference
            if texts is not None:
                numbers |= measured(metric, texts, self.reference)
        return DecoderResult(REAL, numbers)

    @cached_property
    def reference(self) -> Texts:
        """The pieces of real text."""
        return self._texts(self.own_prompts, self.pieces)

    def line(self, size: int, label: str, decoder: Any) -> DecoderResult:
        n, new = self.setting.samples, self.setting.new_tokens
        log.info("block size %d, %s: %d texts of %d tokens", size, label, n, new)
        engine = self._engine(size, decoder)
        result = generate_shared(engine, self.prompts, new, self.ranks)
        texts = self._texts(self.prompts, result.tokens)
        numbers: dict[str, float] = {}
        for metric in metrics_for(self.evaluation_model):
            numbers |= measured(metric, texts, self.reference)
        return DecoderResult(
            label, numbers, size,
            nfe_per_token=result.nfe / n_batches(n, self.ranks) / new,
            tokens_per_second=n * new / result.seconds,
            policy_nats_per_token=self.policy(size, label, decoder),
            answers=self._answers(engine),
        )  # fmt: skip

    def _engine(self, size: int, decoder: Any) -> Engine:
        with warnings.catch_warnings():  # who chose the sizes has been warned already
            warnings.filterwarnings("ignore", message="block_size: .* was not trained")
            return self.lm.engine(config=self.setting.generation, block_size=size, decoder=decoder, stop_at_end=False)

    def _warm_up(self, size: int) -> None:
        """One forward per row, so that nobody's time has in it what is done only once."""
        self._engine(size, {"name": "left_to_right", "steps": 1}).generate(self.prompts, 1)

    def _texts(self, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> Texts:
        """Continuations `rows` of prompts, decoded, and as the evaluation model reads them."""
        pairs, ends = zip(prompts, rows, strict=True), self.lm.model.end_token_ids
        texts = [continuation(self.lm.tokenizer, prompt, row, between="", ends=ends) for prompt, row in pairs]
        return Texts(rows, texts, None if self.evaluation_model is None else self.evaluation_model.read(texts))

    def _answers(self, engine: Engine) -> Answers | None:
        """Answer the prompts of the split; None where it has none."""
        if not self.has_answers:
            return None
        engine = replace(engine, config=replace(engine.config, stop_at_end=True))
        try:
            return score(engine, self.split, self.rows, self.batch_rows, self.ranks)
        except ValueError as error:  # rows that are not one example each, say
            log.warning("solved: left out: %s", error)
            self.has_answers = False
            return None
