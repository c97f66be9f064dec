"""Texts that a request asks for: until a stop string, and the test whether greedy decoding writes a continuation.

A row's text is judged when a block behind it has begun: nothing of it changes any more, whatever the decoder re-masks.
So where it is cut does not depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from hybrid import rng
from hybrid.decoding.config import GenerationConfig
from hybrid.decoding.engine import Engine
from hybrid.decoding.results import GenerationState
from hybrid.decoding.sampling import Sampling
from hybrid.evaluation.harness.pieces import Encode, Piece
from hybrid.lm import LanguageModel
from hybrid.options import convert, shown
from hybrid.progress import progress
from hybrid.text.continuation import continuation

NEW_TOKENS = 256
"""Of a request that does not say how many, if half of the context holds as many."""

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of one limit; of several the first holds, as in the harness."""


@dataclass(frozen=True)
class Wanted:
    """How a request wants its text: stop strings, the most tokens, how they are drawn."""

    until: tuple[str, ...]
    new_tokens: int
    sampling: Sampling

    @classmethod
    def of(cls, asked: Mapping[str, Any], seq_len: int) -> Wanted:
        """Read the generation arguments of a request; without `do_sample` or a temperature it is greedy.

        Raises:
            ValueError: an argument that has no meaning here or is of another type, or no room for a prompt.
        """
        asked = {name: value for name, value in asked.items() if value is not None}
        until = asked.pop("until", ())
        listed = convert("gen_kwargs: until", list(until) if isinstance(until, tuple) else until, str | list[str])
        stops = [listed] if isinstance(listed, str) else listed
        lengths = [asked.pop(name) for name in _LENGTHS if name in asked]
        temperature = asked.pop("temperature", None)
        does_sample = asked.pop("do_sample", bool(temperature))
        if asked.get("num_beams") == 1:
            del asked["num_beams"]
        known = {f.name for f in fields(Sampling)}
        if unknown := sorted(set(asked) - known):
            raise ValueError(
                f"gen_kwargs: {unknown[0]}={shown(asked[unknown[0]])} has no meaning here; a task may give until, "
                f"do_sample, {', '.join(sorted(known))} and {_LENGTHS[0]}"
            )
        new_tokens = _number(_LENGTHS[0], lengths[0], int) if lengths else min(NEW_TOKENS, seq_len // 2)
        if not 0 < new_tokens < seq_len:
            raise ValueError(
                f"gen_kwargs: max_gen_toks={new_tokens} leaves no room for a prompt in the context of {seq_len} "
                f"(data.seq_len), or for a text; take 1 to {seq_len - 1} (--gen-kwargs max_gen_toks=N)"
            )
        drawn_at = 1.0 if temperature is None else _number("temperature", temperature, float)
        asked["temperature"] = drawn_at if does_sample else 0.0
        return cls(tuple(stop for stop in stops if stop), new_tokens, Sampling(**asked))


def _number(name: str, value: Any, kind: Callable[[Any], Any]) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"gen_kwargs: {name}={shown(value)} must be a number") from None


@dataclass(frozen=True)
class Writer:
    """Writes with one decoder at one block size, `most` texts at a time, on which no text depends."""

    lm: LanguageModel
    block_size: int
    decoder: Any
    seed: int
    most: int
    encode: Encode

    def texts(self, contexts: Sequence[str], wanted: Sequence[Wanted]) -> list[str]:
        """Continue each context as is wanted, from the last of its tokens that leave room.

        Equal requests, of a task that draws several texts, get different noise.
        """
        found: dict[int, str] = {}
        groups: dict[Wanted, list[int]] = {}
        for number, how in enumerate(wanted):
            groups.setdefault(how, []).append(number)
        for batch in progress(self._batches(contexts, groups), len(contexts), "texts", "requests"):
            found.update(batch)
        return [found[number] for number in range(len(contexts))]

    def _batches(self, contexts: Sequence[str], groups: Mapping[Wanted, Sequence[int]]) -> Iterator[dict[int, str]]:
        room = self.lm.config.data.seq_len
        for how, numbers in groups.items():
            prompts = [self.encode(contexts[n])[-(room - how.new_tokens) :] for n in numbers]
            keys = rng.row_keys(prompts)
            engine = self._engine(how.sampling)
            for start in range(0, len(prompts), self.most):
                some = slice(start, start + self.most)
                texts = self._until(engine, prompts[some], how, keys[some])
                yield dict(zip(numbers[some], texts, strict=True))

    def _engine(self, sampling: Sampling, stop_at_end: bool = True) -> Engine:
        options = {"block_size": self.block_size, "decoder": self.decoder, "seed": self.seed}
        return self.lm.engine(config=GenerationConfig(**vars(sampling), **options, stop_at_end=stop_at_end))

    def _until(self, engine: Engine, prompts: list[list[int]], how: Wanted, keys: list[int]) -> list[str]:
        """Run until every row has met a stop string, or is done; cut each before its first."""
        texts: list[str | None] = [None] * len(prompts)
        seen = [0] * len(prompts)
        state = None
        for state in engine.stream(prompts, how.new_tokens, keys):
            for i, new in enumerate(settled(state, prompts, engine)):
                if texts[i] is None and len(new) > seen[i]:
                    seen[i] = len(new)
                    texts[i] = _cut(self._text(prompts[i], new), how.until)
            if None not in texts:
                break
        assert state is not None
        rows = zip(texts, prompts, state.tokens, strict=True)
        return [self._text(prompt, new) if text is None else text for text, prompt, new in rows]

    def _text(self, prompt: Sequence[int], new: Sequence[int]) -> str:
        return continuation(self.lm.tokenizer, prompt, new, ends=self.lm.model.end_token_ids)

    def writes(self, pieces: Sequence[Piece]) -> dict[Piece, bool]:
        """Tell of each piece whether decoding at temperature 0 writes its continuation behind its context.

        It is the argmax of each token at block size 1. At larger ones it costs a forward or more a token, as any text.
        """
        by_context: dict[tuple[int, ...], list[Piece]] = {}
        for piece in dict.fromkeys(pieces):
            by_context.setdefault(piece.context, []).append(piece)
        engine = self._engine(Sampling(temperature=0.0), stop_at_end=False)
        found: dict[Piece, bool] = {}
        for contexts in progress(self._greedy_batches(by_context), len(by_context), "greedy texts", "contexts"):
            asked = [by_context[context] for context in contexts]
            n = max(len(piece.continuation) for some in asked for piece in some)
            prompts = [list(context) for context in contexts]
            tokens: list[list[int]] = []
            for state in engine.stream(prompts, n):
                tokens = settled(state, prompts, engine)
                if not any(_agrees(piece, new) for some, new in zip(asked, tokens, strict=True) for piece in some):
                    break
            for some, new in zip(asked, tokens, strict=True):
                found |= {piece: list(piece.continuation) == new[: len(piece.continuation)] for piece in some}
        return found

    def _greedy_batches(self, by_context: Mapping[tuple[int, ...], Sequence[Piece]]) -> Iterator[list[tuple[int, ...]]]:
        """Yield contexts behind each of which as many tokens fit as any of its batch wants."""
        wants = {context: max(len(piece.continuation) for piece in some) for context, some in by_context.items()}
        batch: list[tuple[int, ...]] = []
        for context in sorted(wants, key=lambda context: (wants[context], len(context))):
            longest = max(map(len, [*batch, context])) + wants[context]
            if batch and (len(batch) == self.most or longest > self.lm.config.data.seq_len):
                yield batch
                batch = []
            batch.append(context)
        if batch:
            yield batch


def settled(state: GenerationState, prompts: Sequence[Sequence[int]], engine: Engine) -> list[list[int]]:
    """Return the new tokens of each row that will not change: of blocks behind which another one has begun."""
    found = []
    mask, size = engine.model.mask_token_id, engine.block_size
    for prompt, new, reason in zip(prompts, state.tokens, state.finish_reasons, strict=True):
        if reason is None:
            known = new.index(mask) if mask in new else len(new)
            last = len(prompt) + known - 1  # position of the last known token
            new = new[: max(last // size * size - len(prompt), 0)]
        found.append(new)
    return found


def _agrees(piece: Piece, new: Sequence[int]) -> bool:
    """Return whether all tokens that are known so far are those of the continuation."""
    wanted = piece.continuation
    return wanted[: len(new)] == tuple(new[: len(wanted)])


def _cut(text: str, stops: Sequence[str]) -> str | None:
    """Return the text before the first stop string; None if there is none in it."""
    found = [text.index(stop) for stop in stops if stop in text]
    return text[: min(found)] if found else None
