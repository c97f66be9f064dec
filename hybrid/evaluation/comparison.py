"""Decoders side by side: what each costs, how diverse its texts are, what a judge says of them.

Every decoder generates the same number of texts of the same length from the same prompts, in the same batches, and goes
on behind end-of-text tokens. Pieces of real text of that number and length are measured beside them: that is what the
figures of good text look like. Figures are of the new tokens alone.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hybrid.config import parse_options
from hybrid.data.batches import PackedTokens
from hybrid.decoding import DECODERS, Sampling
from hybrid.decoding.engine import generate_shared, n_batches
from hybrid.distributed import ALONE, Ranks
from hybrid.evaluation.answers import score
from hybrid.evaluation.divergence import LEAST, mauve_like
from hybrid.evaluation.quality import measure
from hybrid.lm import LanguageModel
from hybrid.options import at_least, build
from hybrid.results.text import aligned, formatted
from hybrid.text.continuation import continuation

if TYPE_CHECKING:
    from hybrid.decoding.engine import Engine
    from hybrid.evaluation.reading import EvaluationModel, Reading

log = logging.getLogger(__name__)

ALL = "all"
REAL = "(real text)"
_NEXT_OPTION = re.compile(r",(?=\s*\w+\s*=)")  # a comma inside a value is followed by something else

# Heading, key of a line, format. A column in which no line has a value is not shown.
COLUMNS = (
    ("block", "block_size", "d"),
    ("NFE/tok", "nfe_per_token", ".3f"),
    ("tok/s", "tokens_per_second", ",.0f"),
    ("entropy", "entropy", ".3f"),
    ("dist-1", "distinct_1", ".3f"),
    ("dist-2", "distinct_2", ".3f"),
    ("rep-4", "repetition", ".3f"),
    ("selfBLEU", "self_bleu", ".3f"),
    ("gen-ppl", "gen_ppl", ",.2f"),
    ("nats/byte", "judge_nats_per_byte", ".3f"),
    ("MAUVE*", "mauve_like", ".3f"),
    ("policy", "policy_nats_per_token", ".4f"),
    ("solved", "solved", ".3f"),
)


@dataclass(frozen=True)
class Setting:
    """How texts are generated, whatever the decoder."""

    samples: int
    new_tokens: int
    prompt_tokens: int = 0  # of rows of the split; 0: no prompt
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)  # says what is out of range

    @property
    def sampling(self) -> dict[str, Any]:
        """What `LanguageModel.engine` takes."""
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p, "seed": self.seed}


def setting_for(seq_len: int, new_tokens: int | None, prompt_tokens: int, **rest: Any) -> Setting:
    """A setting that fits into a context of `seq_len`; `new_tokens` None: until it is full.

    Raises:
        ValueError: it does not fit; names the option of the command line.
    """
    at_least("--prompt-tokens", prompt_tokens, 0)
    room = seq_len - prompt_tokens
    if room < 1:
        raise ValueError(f"--prompt-tokens: {prompt_tokens} fill the context of {seq_len} (data.seq_len); lower it")
    new_tokens = room if new_tokens is None else new_tokens
    at_least("--new-tokens", new_tokens, 1)
    if new_tokens > room:
        raise ValueError(
            f"--new-tokens: {new_tokens} behind {prompt_tokens} prompt tokens exceed the context of {seq_len} "
            f"(data.seq_len); at most {room}"
        )
    return Setting(new_tokens=new_tokens, prompt_tokens=prompt_tokens, **rest)


def choose_decoders(words: Iterable[str], key: str) -> dict[str, Any]:
    """`NAME` or `NAME:key=value,key=value`, as typed -> the decoder; `all` stands for the whole table.

    Raises:
        ValueError: an unknown decoder, or an option that it does not take.
    """
    chosen = {}
    for word in words:
        for label in DECODERS if word == ALL else [word]:
            name, _, options = label.partition(":")
            spec = {"name": name, **parse_options(_NEXT_OPTION.split(options) if options else [], key)}
            chosen[label] = build(DECODERS, spec, key)
    return chosen


@dataclass
class Comparison:
    """Lines of the table, as dicts.

    Args:
        policy: (block size, label, decoder) -> the NLL of its order in nats per token, None if it has none.
        rows: how many prompts are answered where the split has prompts with completions (0: all).
    """

    lm: LanguageModel
    split: PackedTokens
    setting: Setting
    judge: EvaluationModel | None = None
    policy: Callable[[int, str, Any], float | None] = lambda size, label, decoder: None
    rows: int = 0
    batch_rows: int = 64
    ranks: Ranks = ALONE
    real: Reading | None = field(default=None, init=False)
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

    def lines(self, sizes: Sequence[int], decoders: dict[str, Any]) -> list[dict[str, Any]]:
        """Real text first, then every decoder at every block size."""
        result = [self.real_text()]
        for size in sizes:
            self._warm_up(size)
            result += [self.line(size, label, decoder) for label, decoder in decoders.items()]
        return result

    def real_text(self) -> dict[str, Any]:
        """Its `mauve_like` is that of two disjoint samples of it: the best that can be hoped for."""
        log.info("%s: %d pieces of %d tokens", REAL, len(self.pieces), self.setting.new_tokens)
        line: dict[str, Any] = {"decoder": REAL, **self._diversity(self.own_prompts, self.pieces)}
        if self.judge is not None:
            self.real = self.judge.read(self._texts(self.own_prompts, self.pieces))
            line |= self._verdict(self.real)
            if self.others:
                other = self.judge.read(self._texts(self.other_prompts, self.others))
                line["mauve_like"] = mauve_like(other.features, self.real.features)
        return line

    def line(self, size: int, label: str, decoder: Any) -> dict[str, Any]:
        n, new = self.setting.samples, self.setting.new_tokens
        log.info("block size %d, %s: %d texts of %d tokens", size, label, n, new)
        engine = self._engine(size, decoder)
        result = generate_shared(engine, self.prompts, new, self.ranks)
        line: dict[str, Any] = {"decoder": label, "block_size": size}
        per_batch = result.nfe / n_batches(n, self.ranks)
        line |= {"nfe_per_token": per_batch / new, "tokens_per_second": n * new / result.seconds}
        line |= self._diversity(self.prompts, result.tokens)
        if self.judge is not None:
            reading = self.judge.read(self._texts(self.prompts, result.tokens))
            line |= self._verdict(reading)
            if self.real is not None:
                line["mauve_like"] = mauve_like(reading.features, self.real.features)
        line["policy_nats_per_token"] = self.policy(size, label, decoder)
        return line | self._answers(engine)

    def _engine(self, size: int, decoder: Any) -> Engine:
        with warnings.catch_warnings():  # who chose the sizes has been warned already
            warnings.filterwarnings("ignore", message="block_size: .* was not trained")
            return self.lm.engine(size, decoder, stop_at_end=False, **self.setting.sampling)

    def _warm_up(self, size: int) -> None:
        """One forward per row, so that nobody's time has in it what is done only once."""
        self._engine(size, {"name": "left_to_right", "steps": 1}).generate(self.prompts, 1)

    def _texts(self, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> list[str]:
        pairs = zip(prompts, rows, strict=True)
        return [continuation(self.lm.tokenizer, prompt, row, between="") for prompt, row in pairs]

    def _diversity(self, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> dict[str, float]:
        return dataclasses.asdict(measure(rows, self._texts(prompts, rows)))

    def _verdict(self, reading: Reading) -> dict[str, Any]:
        return {
            "gen_ppl": reading.gen_ppl,
            "judge_nats_per_token": reading.nats_per_token,
            "judge_stderr": reading.stderr_per_token,
            "judge_nats_per_byte": reading.nats_per_byte,
            "texts_cut": int(reading.is_cut.sum()),
        }

    def _answers(self, engine: Engine) -> dict[str, Any]:
        if not self.has_answers:
            return {}
        try:
            answers = score(
                dataclasses.replace(engine, stop_at_end=True), self.split, self.rows, self.batch_rows, self.ranks
            )
        except ValueError as error:  # rows that are not one example each, say
            log.warning("solved: left out: %s", error)
            self.has_answers = False
            return {}
        return {
            "solved": answers.solved,
            "solved_stderr": answers.stderr,
            "right_tokens": answers.right_tokens,
            "answers": answers.n,
        }


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Plain text, one line per decoder and block size; `-` where there is no such figure."""
    columns = [c for c in COLUMNS if any(line.get(c[1]) is not None for line in lines)]
    cells = [["decoder", *(head for head, _, _ in columns)]]
    cells += [[line["decoder"], *(formatted(line.get(key), form) for _, key, form in columns)] for line in lines]
    return aligned(cells)


def notes(lines: Sequence[dict[str, Any]], setting: Setting, judge: EvaluationModel | None) -> list[str]:
    """What must be said below the table."""
    prompts = f" behind {setting.prompt_tokens} prompt tokens" if setting.prompt_tokens else ""
    result = [
        f"{setting.samples} texts of {setting.new_tokens} tokens{prompts}; entropy in nats; NFE/tok: forwards of a "
        "batch per token of a text"
    ]
    if any(line.get("policy_nats_per_token") is not None for line in lines):
        result.append("policy: nats per token of the real text in the decoder's order, where that is deterministic")
    if judge is not None:
        about = judge.about
        bound = " (a bound: upper ends)" if about["likelihood"] == "bound" else ""
        cut = max(line.get("texts_cut", 0) for line in lines)
        short = f", which cuts up to {cut} texts to its {about['context']} tokens" if cut else ""
        result.append(f"gen-ppl, nats/byte: of the judge {about['path']}{bound}{short}")
        judged = [line["judge_nats_per_byte"] for line in lines if "judge_nats_per_byte" in line]
        if any(map(math.isnan, judged)):
            result.append("nats/byte: no value (-) where the judge's tokens do not give the texts back")
        result.append("MAUVE*: like MAUVE, on the judge's features; compare within this table only")
        if any(math.isnan(line.get("mauve_like", 0.0)) for line in lines):
            result.append(f"MAUVE* needs {LEAST} texts, and as many of real text: no value (-) without them")
    return result
