"""Generated text on the command line: stop strings, live display, statistics. The engine knows token ids only."""

from __future__ import annotations

import shutil
import sys
import time
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TextIO

from hybrid.data.tokenizers import Tokenizer
from hybrid.decoding.results import GenerationState, added
from hybrid.distributed import Ranks
from hybrid.text.continuation import continuation, spelled
from hybrid.text.terminal import printable, wrapped

UNKNOWN = "░"
"""Shown for a position that is not revealed yet."""

BETWEEN = "\n---\n"
"""Printed between two texts."""


@dataclass(frozen=True)
class Texts:
    """Generated texts: without their prompt (with it where the prompt had gaps), and what they cost.

    `finish_reasons` are those of `Generation`, or `stop`: a stop string was found. `n_tokens` counts the tokens that
    the texts are made of, not those behind a stop string.
    """

    texts: list[str]
    n_tokens: int
    nfe: int
    seconds: float
    finish_reasons: list[str] = field(default_factory=list)
    filled: list[list[str]] = field(default_factory=list)  # the texts of the gaps of each prompt
    kept: list[int] = field(default_factory=list)  # as that of `Generation`

    @classmethod
    def one_after_another(cls, parts: Iterable[Texts]) -> Texts:
        """Join those of several batches; costs add up."""
        result = cls([], 0, 0, 0.0)
        for part in parts:
            result = cls(
                result.texts + part.texts, result.n_tokens + part.n_tokens, result.nfe + part.nfe,
                result.seconds + part.seconds, result.finish_reasons + part.finish_reasons,
                result.filled + part.filled, added([result.kept, part.kept]),
            )  # fmt: skip
        return result

    def of_all(self, ranks: Ranks) -> Texts:
        """Gather what all ranks generated; forwards and seconds are those of the rank that needed most."""
        costs = ranks.gather((self.n_tokens, self.nfe, self.seconds))
        tokens, nfe, seconds = zip(*costs, strict=True)
        texts, reasons, filled = map(ranks.interleave, (self.texts, self.finish_reasons, self.filled))
        return Texts(texts, sum(tokens), max(nfe), max(seconds), reasons, filled, added(ranks.gather(self.kept)))

    def statistics(self) -> dict[str, float | list[int]]:
        rounds = {"rounds_by_tokens_kept": self.kept} if self.kept else {}
        return {
            "tokens": self.n_tokens,
            "forwards": self.nfe,
            "seconds": round(self.seconds, 4),
            "tokens_per_second": round(self.n_tokens / max(self.seconds, 1e-9), 2),
            "tokens_per_forward": round(self.n_tokens / max(self.nfe, 1), 3),
            **rounds,
        }

    def summary(self, law: str = "") -> str:
        """Say in a line what was written, and by which `Engine.law` if it is given."""
        s = self.statistics()
        rounds, kept = sum(self.kept), sum(k * n for k, n in enumerate(self.kept))
        a_round = f", {kept / rounds:.2f} tokens kept a round" if rounds else ""
        return (
            f"{self.n_tokens} tokens in {self.seconds:.2f} s ({s['tokens_per_second']:.0f} tokens/s), {self.nfe} "
            f"forwards ({s['tokens_per_forward']:.2f} tokens per forward){a_round}"
            f"{law and f', law: {law}'}"
        )


class Console:
    """Follows a generation, or several one after another.

    Args:
        prompt: what was typed, shown before each text.
        stops: each text is cut before the first of these that is complete, and nothing is removed from its middle.
        live: redraw the texts at every step (terminals).
        gaps: of the prompt, where they begin and end. If there are any, `prompt` is not shown, and a text is the whole,
            given tokens and all; stops are looked for behind the prompt only.
        ends: ids that end a text besides end of text (`Transformer.end_token_ids`).
    """

    def __init__(
        self, tokenizer: Tokenizer, mask_token_id: int, prompt: str, stops: Sequence[str] = (), live: bool = False,
        stream: TextIO | None = None, gaps: Sequence[tuple[int, int]] = (), ends: Collection[int] = (),
    ):  # fmt: skip
        self.tokenizer, self.mask, self.stops, self.live, self.gaps = tokenizer, mask_token_id, stops, live, gaps
        self.ends, self.prompt = ends, "" if gaps else prompt
        self.stream = stream or sys.stdout
        self._lines = 0
        self._is_first = True

    def follow(self, steps: Iterator[GenerationState], n_texts: int) -> Texts:
        """Run a generation of `n_texts` to its end, or until every text has met a stop string."""
        started = time.perf_counter()
        if self.live and not self._is_first:
            self.stream.write(BETWEEN.lstrip())
        self._is_first = False
        last = None
        for last in steps:
            if self.live:
                self._draw([self._shown(*row) for row in _rows(last)])
            if self.stops and all(self._cut(*row) is not None for row in _rows(last)):
                break
        texts = self.result(last, n_texts, time.perf_counter() - started)
        if self.live:
            self._finish([self.prompt + text for text in texts.texts])
        return texts

    def so_far(self, state: GenerationState) -> tuple[str, bool]:
        """Return what is known of the only text from its start on, and whether a stop string has ended it."""
        (row,) = _rows(state)
        cut = self._cut(*row)
        return (self._added(row[0], self._known(*row)), False) if cut is None else (cut, True)

    def result(self, last: GenerationState | None, n_texts: int, seconds: float, reason: str = "length") -> Texts:
        """Return the texts of the last state of a generation; None: nothing was to be generated.

        Args:
            reason: why a text ends that could have gone on.
        """
        if last is None:
            return Texts([""] * n_texts, 0, 0, seconds, [reason] * n_texts)
        rows = _rows(last)
        parts = [self._finished(*row) for row in rows]
        reasons = last.finish_reasons or [None] * n_texts
        return Texts(
            texts=[text for text, _, _ in parts],
            n_tokens=sum(n for _, n, _ in parts),
            nfe=last.nfe,
            seconds=seconds,
            finish_reasons=[
                "stop" if is_cut else found or reason for (_, _, is_cut), found in zip(parts, reasons, strict=True)
            ],
            filled=[[self._added(head[:a], head[a:b]) for a, b in self.gaps] for head, _ in rows],
            kept=list(last.kept),
        )

    def _added(self, before: list[int], new: list[int]) -> str:
        return continuation(self.tokenizer, before, new, ends=self.ends)

    def _finished(self, head: list[int], new: list[int]) -> tuple[str, int, bool]:
        """Return a text, the tokens that were written for it, and whether a stop string ended it."""
        known, cut = self._known(head, new), self._cut(head, new)
        text = self._added(head, known) if cut is None else cut
        n = len(known)
        if cut is not None:
            n = bisect_left(range(n), True, key=lambda n: self._added(head, known[:n]).startswith(text))
        if self.gaps:
            text = self._added([], head) + text
        return text, n + sum(b - a for a, b in self.gaps), cut is not None

    def _known(self, head: list[int], new: list[int]) -> list[int]:
        """Return the new tokens before the first unknown one."""
        if self.mask in head:
            return []
        return new[: new.index(self.mask)] if self.mask in new else new

    def _cut(self, head: list[int], new: list[int]) -> str | None:
        """Return the new text before the first stop string, or None if there is none in it."""
        if not self.stops or self.mask in head:
            return None
        text = self._added(head, self._known(head, new))
        found = [text.index(stop) for stop in self.stops if stop in text]
        return text[: min(found)] if found else None

    def _shown(self, head: list[int], new: list[int]) -> str:
        """Return what is known so far, and a sign for each token that is not."""
        before, row = ([], head + new) if self.gaps else (head, new)
        known = row.index(self.mask) if self.mask in row else len(row)
        text = self.prompt + self._added(before, row[:known])
        for is_unknown, run in groupby(row[known:], lambda token: token == self.mask):
            tokens = list(run)
            text += UNKNOWN * len(tokens) if is_unknown else spelled(self.tokenizer, tokens)
        return text

    def _draw(self, texts: list[str]) -> None:
        """Overwrite what was drawn before, by as much of the texts' ends as the screen holds."""
        width, height = shutil.get_terminal_size()
        lines: list[str] = []
        for i, text in enumerate(texts):
            lines += ["---"] if i else []
            for line in text.expandtabs().split("\n"):
                lines += wrapped(printable(line), width)
        shown = lines[-(height - 1) :]
        self._overwrite("\n".join(shown))
        self._lines = len(shown)

    def _finish(self, texts: list[str]) -> None:
        """Overwrite what was drawn before by the whole texts, which may be longer than the screen."""
        self._overwrite(BETWEEN.join(printable(text) for text in texts))
        self._lines = 0

    def _overwrite(self, text: str) -> None:
        up = f"\x1b[{self._lines}A" if self._lines else ""
        self.stream.write(f"{up}\x1b[J{text}\n")
        self.stream.flush()


def _rows(state: GenerationState) -> list[tuple[list[int], list[int]]]:
    """Return of each row the prompt's tokens, its gaps filled as far as they are, and the new ones."""
    pairs = zip(state.sequences, state.tokens, strict=True)
    return [(whole[: len(whole) - len(new)], new) for whole, new in pairs]
