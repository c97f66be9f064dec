"""HybridLM: the class that lm-evaluation-harness calls, registered there as `hybrid` when this module is imported.

simple_evaluate(model=HybridLM("runs/quickstart", block_size=8), tasks=[...])
simple_evaluate(model="hybrid", model_args="checkpoint=runs/quickstart,block_size=8", tasks=[...])
"""

from __future__ import annotations

import contextlib
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from hybrid.arguments import SEEDS, flag, integer
from hybrid.device import default_precision, resolve_device, resolve_precision
from hybrid.evaluation.harness.pieces import Piece, encode_pair, fitted
from hybrid.evaluation.harness.scoring import Estimator, Score, errors_of
from hybrid.evaluation.harness.writing import Wanted, Writer
from hybrid.evaluation.machine import environment_of
from hybrid.evaluation.setting import choose_decoders
from hybrid.lm import LanguageModel, load

NO_TEMPLATE = "apply_chat_template: the tokenizer of the model has no chat template; leave the option out"


class HybridLM(LM):
    """A trained model as the harness sees it.

    Args:
        checkpoint: what `hybrid.load` takes, or a loaded model.
        block_size: None: the first that was trained.
        decoder: writes the texts, and has the likelihood of its order if that is deterministic; `NAME` or
            `NAME:key=value`, a mapping, or an instance. None: that of the run writes, and the bound scores.
        draws: noise draws of the bound of each request, or "all" for every mask (block sizes up to 12).
        seed: of that noise and of the texts.
        batch_size: rows of a forward, of which each draw is one; no result depends on it, but for rounding.
        check_greedy: whether `is_greedy` is found by writing the continuation; if not, it is False. None: at block size
            1, where it is cheap.
        device, precision: as the commands take them; of a model that is loaded already they are what they are.

    Raises:
        ValueError: one of these that is wrong; one line.
    """

    def __init__(
        self, checkpoint: str | LanguageModel, block_size: int | None = None, decoder: Any = None,
        draws: int | str = 32, seed: int = 0, batch_size: int | str = 64, check_greedy: bool | None = None,
        device: str = "auto", precision: str | None = None,
    ):  # fmt: skip
        super().__init__()
        if not isinstance(checkpoint, LanguageModel):
            where = resolve_device(device, key="device")
            chosen = resolve_precision(precision or default_precision(where), where)
            checkpoint = load(checkpoint, str(where), chosen)
        self.lm = checkpoint
        self._device = self.lm.device
        size = self.lm.engine(block_size=block_size).block_size
        if isinstance(decoder, str):
            decoder = choose_decoders([decoder], "decoder")[decoder]
        seed = integer("seed", seed, *SEEDS)
        most = int(batch_size) if isinstance(batch_size, str) and batch_size.isdecimal() else batch_size
        self.batch_size = integer("batch_size", most, 1)
        with _one_warning():
            self.estimator = Estimator.choose(self.lm, size, decoder, draws, seed)
        written_by = self.lm.config.decoder if decoder is None else decoder
        self.writer = Writer(self.lm, size, written_by, seed, self.batch_size)
        self.checks_greedy = size == 1 if check_greedy is None else flag("check_greedy", check_greedy)
        self.stderrs: dict[tuple[str, ...], float] = {}
        self._scores: defaultdict[str, list[Score]] = defaultdict(list)

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """log p of each continuation given its context, and whether it is what greedy decoding writes."""
        pieces = [self._piece(*map(str, request.args)) for request in requests]
        with _one_warning():
            scores = self.estimator.score(pieces, self.batch_size)
            greedy = self.writer.writes(pieces) if self.checks_greedy else {}
        self._note("loglikelihood", requests, scores)
        found = [(score.log_p, greedy.get(piece, False)) for score, piece in zip(scores, pieces, strict=True)]
        self._cache("loglikelihood", requests, found)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p of each text: of one that is longer than the context in windows, each token in one of them."""
        windows = [list(self._windows(*request.args)) for request in requests]
        with _one_warning():
            scores = iter(self.estimator.score([piece for some in windows for piece in some], self.batch_size))
        sums = [Score.sum(next(scores) for _ in some) for some in windows]
        self._note("loglikelihood_rolling", requests, sums)
        found = [score.log_p for score in sums]
        self._cache("loglikelihood_rolling", requests, found)
        return found

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue each context until one of its stop strings, which is cut off, or its own number of tokens."""
        contexts = [str(request.args[0]) for request in requests]
        wanted = [Wanted.of(request.args[-1], self.lm.config.data.seq_len) for request in requests]
        with _one_warning():
            found = self.writer.texts(contexts, wanted)
        self._cache("generate_until", requests, found)
        return found

    @property
    def tokenizer_name(self) -> str:
        """Name and content of the tokenizer: the harness caches rendered requests by it."""
        return f"{self.lm.tokenizer.name}-{self.lm.tokenizer.fingerprint}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        raise ValueError(NO_TEMPLATE)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        raise ValueError(NO_TEMPLATE)

    def get_model_info(self) -> dict[str, Any]:
        """What `config` of the results says of model, likelihood and machine."""
        return {
            "hybrid": {
                "checkpoint": self.lm.origin.checkpoint,
                "decoder": str(self.writer.decoder),
                "likelihood": {**self.estimator.about, "noise": errors_of(self._scores)},
                "checks_greedy": self.checks_greedy,
                "environment": environment_of(self.lm),
            }
        }

    def _piece(self, context: str, continuation: str) -> Piece:
        before, after = encode_pair(self.lm.tokenizer.encode, context, continuation)
        return fitted(before, after, self.lm.config.data.seq_len, continuation)

    def _windows(self, text: str) -> Iterator[Piece]:
        """Yield rows of at most `seq_len` tokens; all but the first begin with at least one that is given."""
        ids, seq_len = self.lm.tokenizer.encode(text), self.lm.config.data.seq_len
        if len(ids) <= seq_len:
            if ids:
                yield Piece(tuple(ids), 0)
            return
        nothing = self.lm.tokenizer.end_of_text  # before the first window: no token of the row
        for number, pair in enumerate(get_rolling_token_windows(ids, nothing, seq_len - 1, 1)):
            context, scored = make_disjoint_window(pair)
            given = [] if number == 0 else context
            yield Piece((*given, *scored), len(given))

    def _note(self, kind: str, requests: Sequence[Instance], scores: Sequence[Score]) -> None:
        for request, score in zip(requests, scores, strict=True):
            self._scores[request.task_name or kind].append(score)
            self.stderrs[request.args] = score.stderr

    def _cache(self, kind: str, requests: Sequence[Instance], found: Sequence[Any]) -> None:
        """Tell the harness what is known, which it may write down (`use_cache`)."""
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)


@contextlib.contextmanager
def _one_warning() -> Iterator[None]:
    """Say once that a block size was not trained, which was said when it was chosen."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="block_size: .* was not trained")
        yield


register_model("hybrid")(HybridLM)
