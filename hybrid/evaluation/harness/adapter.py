"""HybridLM: the class that lm-evaluation-harness calls, registered there as `hybrid` when this module is imported.

simple_evaluate(model=HybridLM("runs/quickstart", block_size=8), tasks=[...])
simple_evaluate(model="hybrid", model_args="checkpoint=runs/quickstart,block_size=8", tasks=[...])
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from hybrid.arguments import SEEDS, flag, integer
from hybrid.data.chat import Chat
from hybrid.device import default_precision, resolve_device
from hybrid.evaluation.harness.pieces import Piece, encode_pair, fitted, refuse_several
from hybrid.evaluation.harness.scoring import Estimator, Score, errors_of
from hybrid.evaluation.harness.writing import Wanted, Writer
from hybrid.evaluation.machine import environment_of
from hybrid.evaluation.setting import choose_decoders
from hybrid.lm import LanguageModel, load
from hybrid.text.chat import ChatPrompts


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
        device, precision, dtype: as the commands take them; of a model that is loaded already they are what they are.

    Raises:
        ValueError: one of these that is wrong; one line.
    """

    def __init__(
        self, checkpoint: str | LanguageModel, block_size: int | None = None, decoder: Any = None,
        draws: int | str = 32, seed: int = 0, batch_size: int | str = 64, check_greedy: bool | None = None,
        device: str = "auto", precision: str | None = None, dtype: str | None = None,
    ):  # fmt: skip
        super().__init__()
        if not isinstance(checkpoint, LanguageModel):
            where = resolve_device(device, key="device")
            checkpoint = load(checkpoint, str(where), precision or default_precision(where, dtype), dtype)
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
        self.writer = Writer(self.lm, size, written_by, seed, self.batch_size, self._context)
        self.checks_greedy = size == 1 if check_greedy is None else flag("check_greedy", check_greedy)
        self._conversations: dict[str, list[int]] = {}  # the ids of what the chat template has written
        self.scores: defaultdict[str, dict[tuple[str, ...], Score]] = defaultdict(dict)  # of tasks, by their requests

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """log p of each continuation given its context, and whether it is what greedy decoding writes."""
        for request in requests:
            refuse_several(request.args)
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
        """Return the source of the template, which the harness writes down."""
        template = self.lm.tokenizer.chat_template
        return None if template is None else template.source

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a conversation, which the harness writes down.

        When it comes back as a context, its ids are those that `generate.py --messages` makes: what stands in a message
        is text, whatever it spells.

        Raises:
            ValueError: there is no template, or the task begins the answer itself.
        """
        if not add_generation_prompt:
            raise ValueError(
                "apply_chat_template: the task begins the answer of the assistant itself (gen_prefix), which is not "
                "supported; leave the option out"
            )
        self._take_rows_as_one_document()
        ids = self._prompts(chat_history)
        text = self._chat.rendered(chat_history, True, "messages")
        self._conversations[text] = ids
        return text

    def _take_rows_as_one_document(self) -> None:
        """Let no end of text between the turns of a conversation hide what stands before it (`data.document_mask`), as
        `generate.py --messages` does. The harness renders all conversations before it asks anything."""
        config = self.lm.config
        if config.data.document_mask:
            one_document = dataclasses.replace(config, data=dataclasses.replace(config.data, document_mask=False))
            self.lm = dataclasses.replace(self.lm, config=one_document)
            self.estimator = dataclasses.replace(self.estimator, lm=self.lm)
            self.writer = dataclasses.replace(self.writer, lm=self.lm)

    @cached_property
    def _prompts(self) -> ChatPrompts:
        return ChatPrompts.of(self.lm)

    @cached_property
    def _chat(self) -> Chat:
        assert self.lm.tokenizer.chat_template is not None
        return Chat(self.lm.tokenizer, self.lm.tokenizer.chat_template)

    def get_model_info(self) -> dict[str, Any]:
        """What `config` of the results says of model, likelihood and machine."""
        noise = errors_of({task: list(some.values()) for task, some in self.scores.items()})
        return {
            "hybrid": {
                "checkpoint": self.lm.origin.checkpoint,
                "decoder": str(self.writer.decoder),
                "likelihood": {
                    **self.estimator.about,
                    "noise": noise,
                },
                "checks_greedy": self.checks_greedy,
                "environment": environment_of(self.lm),
            }
        }

    def _piece(self, context: str, continuation: str) -> Piece:
        if context in self._conversations:
            before, after = self._conversations[context], self.lm.tokenizer.encode_behind(continuation)
        else:
            before, after = encode_pair(self.lm.tokenizer.encode, context, continuation)
        return fitted(before, after, self.lm.config.data.seq_len, continuation)

    def _context(self, text: str) -> list[int]:
        return self._conversations[text] if text in self._conversations else self.lm.tokenizer.encode(text)

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
            self.scores[request.task_name or kind][request.args] = score

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
