"""Generated text on the command line: stop strings, live display, statistics. The engine knows token ids only."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

from hybrid.decoding.engine import Progress
from hybrid.ranks import Ranks
from hybrid.tokenizer import Tokenizer

UNKNOWN = "░"
"""Shown for a position that is not revealed yet."""


@dataclass(frozen=True)
class Texts:
    """What was generated: texts without their prompt, and what they cost."""

    texts: list[str]
    n_tokens: int
    nfe: int
    seconds: float

    def of_all(self, ranks: Ranks) -> Texts:
        """What all ranks generated; forwards and seconds are those of the rank that needed most."""
        costs = ranks.gather((self.n_tokens, self.nfe, self.seconds))
        tokens, nfe, seconds = zip(*costs, strict=True)
        return Texts(ranks.interleave(self.texts), sum(tokens), max(nfe), max(seconds))

    def statistics(self) -> dict[str, float]:
        return {
            "tokens": self.n_tokens,
            "forwards": self.nfe,
            "seconds": round(self.seconds, 4),
            "tokens_per_second": round(self.n_tokens / max(self.seconds, 1e-9), 2),
            "tokens_per_forward": round(self.n_tokens / max(self.nfe, 1), 3),
        }

    def summary(self) -> str:
        s = self.statistics()
        return (
            f"{self.n_tokens} tokens in {self.seconds:.2f} s ({s['tokens_per_second']:.0f} tokens/s), {self.nfe} "
            f"forwards ({s['tokens_per_forward']:.2f} tokens per forward)"
        )


class Console:
    """Follows a generation.

    Args:
        stops: each text is cut before the first of these that is complete, and nothing is removed from its middle.
        live: redraw the texts at every step (terminals).
    """

    def __init__(
        self, tokenizer: Tokenizer, mask_token_id: int, prompt: str, stops: Sequence[str] = (), live: bool = False,
        stream: TextIO | None = None,
    ):  # fmt: skip
        self.tokenizer, self.mask, self.prompt, self.stops, self.live = tokenizer, mask_token_id, prompt, stops, live
        self.stream = stream or sys.stdout
        self._lines = 0

    def follow(self, steps: Iterator[Progress], n_texts: int) -> Texts:
        """Run a generation of `n_texts` to its end, or until every text has met a stop string."""
        started = time.perf_counter()
        last = None
        for last in steps:
            if self.live:
                self._draw([self._shown(row) for row in last.tokens])
            if self.stops and all(self._cut(self._known(row)) is not None for row in last.tokens):
                break
        seconds = time.perf_counter() - started
        # Nothing is yielded where nothing was to be generated.
        rows = [[] for _ in range(n_texts)] if last is None else [self._known(row) for row in last.tokens]
        texts = [self._text(row) for row in rows]
        if self.live:
            self._finish([self.prompt + text for text in texts])
        return Texts(texts, sum(map(len, rows)), 0 if last is None else last.nfe, seconds)

    def _known(self, row: list[int]) -> list[int]:
        """The tokens before the first unknown one."""
        return row[: row.index(self.mask)] if self.mask in row else row

    def _text(self, row: list[int]) -> str:
        cut = self._cut(row)
        return self.tokenizer.decode(row) if cut is None else cut

    def _cut(self, row: list[int]) -> str | None:
        """The text before the first stop string, or None if there is none in it."""
        if not self.stops:
            return None
        text = self.tokenizer.decode(row)
        found = [text.index(stop) for stop in self.stops if stop in text]
        return text[: min(found)] if found else None

    def _shown(self, row: list[int]) -> str:
        parts: list[str] = []
        run: list[int] = []
        for token in [*row, self.mask]:
            if token != self.mask:
                run.append(token)
                continue
            parts += [self.tokenizer.decode(run), UNKNOWN]
            run = []
        return self.prompt + "".join(parts[:-1])

    def _draw(self, texts: list[str]) -> None:
        """Overwrite what was drawn before, by as much of the texts' ends as the screen holds."""
        import shutil

        width = shutil.get_terminal_size().columns
        lines: list[str] = []
        for i, text in enumerate(texts):
            lines += ["---"] if i else []
            for line in text.expandtabs().split("\n"):
                lines += _wrapped(_printable(line), width)
        height = shutil.get_terminal_size().lines - 1
        shown = lines[-height:]
        self._overwrite("\n".join(shown))
        self._lines = len(shown)

    def _finish(self, texts: list[str]) -> None:
        """Overwrite what was drawn before by the whole texts, which may be longer than the screen."""
        self._overwrite("\n---\n".join(_printable(text) for text in texts))
        self._lines = 0

    def _overwrite(self, text: str) -> None:
        up = f"\x1b[{self._lines}A" if self._lines else ""
        self.stream.write(f"{up}\x1b[J{text}\n")
        self.stream.flush()


def _printable(text: str) -> str:
    """Without what a terminal would obey; a model of bytes can produce anything."""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)


def _wrapped(line: str, width: int) -> list[str]:
    """The line in pieces of at most `width` columns, at least one piece."""
    pieces, columns = [""], 0
    for c in line:
        wide = 0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        if columns + wide > width:
            pieces.append("")
            columns = 0
        pieces[-1] += c
        columns += wide
    return pieces
