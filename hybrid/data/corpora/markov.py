"""Sources of known entropy, as corpora: chains of letters, and chains of words that no left-to-right rule spells.

The law of the documents is known, so the best likelihood that any model can have is a number: no bound is below it, by
more than the noise of the rows it is measured on, and what is above it is the model's own error.

All documents of a corpus have n = `length` characters: with `data.seq_len` = n + 1 (the end-of-text token, which is
certain) a row is one document, and blocks of a word's length, or a multiple of it, begin where a word begins. Keep n so
long that documents hardly repeat: equal ones fall into one split, and then neither split is a sample of the source.

Shape legend: D documents, T symbols of a document, S symbols, C = S^order contexts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import ascii_lowercase

import numpy as np

from hybrid.data.corpora.source import Document, Documents, InMemory, refuse_too_much
from hybrid.options import at_least, at_most, option
from hybrid.storage.hashing import digest

VERSION = 1  # raise it when the same options give other documents, so that old caches are left alone
MOST_CONTEXTS = 1024  # of a chain: its stationary law takes C^3 operations
MOST_LENGTH = 10**6  # characters of a document
HIGHEST_PEAK = 10  # above it a chain hardly ever leaves a few symbols
TRANSITION, SPELLING, DOCUMENTS = range(3)  # streams of random numbers: more documents are of the same language


class Chain:
    """A stationary chain of symbols 0 to S - 1, each drawn given the `order` symbols before it.

    Attributes:
        transition: float64 [C, S], rows sum to 1; a context is the number whose digits in base S are its symbols.
    """

    def __init__(self, symbols: int, order: int, peak: float, random: np.random.Generator) -> None:
        self.symbols, self.order = symbols, order
        scores = peak * random.standard_normal((symbols**order, symbols))
        weights = np.exp(scores - scores.max(1, keepdims=True))
        self.transition = weights / weights.sum(1, keepdims=True)

    @cached_property
    def stationary(self) -> np.ndarray:
        """Return the law of a context [C] that one step does not change: float64, every document starts in it.

        By the elimination of Grassmann, Taksar and Heyman (1985): it subtracts nothing, so it is exact to rounding
        even where the chain hardly mixes.
        """
        n = len(self.transition)
        steps = np.zeros((n, n))
        contexts = np.arange(n)[:, None]
        steps[contexts, self._next(contexts, np.arange(self.symbols))] = self.transition
        for last in range(n - 1, 0, -1):  # the chain as it is seen on the contexts before `last`
            steps[:last, last] /= steps[last, :last].sum()
            steps[:last, :last] += np.outer(steps[:last, last], steps[last, :last])
        law = np.ones(n)
        for context in range(1, n):
            law[context] = law[:context] @ steps[:context, context]
        return law / law.sum()

    def entropy(self, length: int) -> float:
        """H(first context) + (length - order) * mean entropy of a row of `transition`: nats of `length` symbols."""
        rate = self.stationary @ _entropy(self.transition)
        return float(_entropy(self.stationary) + (length - self.order) * rate)

    def sample(self, random: np.random.Generator, n: int, length: int) -> np.ndarray:
        """Draw `n` sequences: int64 [n, length]."""
        up_to = self.transition.cumsum(1)[:, :-1]
        context = np.searchsorted(self.stationary.cumsum()[:-1], random.random(n), side="right")
        columns: list[np.ndarray] = list(np.unravel_index(context, [self.symbols] * self.order))
        for _ in range(length - self.order):
            columns.append((random.random((n, 1)) >= up_to[context]).sum(1))
            context = self._next(context, columns[-1])
        return np.stack(columns, axis=1)

    def log_prob(self, symbols: np.ndarray) -> np.ndarray:
        """Return the log-probabilities, nats, of sequences [D, T]: float64 [D]."""
        context = symbols[:, : self.order] @ self.symbols ** np.arange(self.order)[::-1]
        total = np.log(self.stationary[context])
        for column in symbols[:, self.order :].T:
            total += np.log(self.transition[context, column])
            context = self._next(context, column)
        return total

    def _next(self, context: np.ndarray, symbol: np.ndarray) -> np.ndarray:
        return (context * self.symbols + symbol) % self.symbols**self.order


def _entropy(law: np.ndarray) -> np.ndarray:
    """Return the nats of laws [..., n]: [...]."""
    return -(law * np.log(law, where=law > 0, out=np.zeros_like(law))).sum(-1)


@dataclass(frozen=True)
class Spelt(ABC):
    """What both sources are: a chain whose symbols are written with one or several letters each."""

    documents: int = option(20_000, "how many")
    length: int = option(64, "characters of a document; with data.seq_len = length + 1 a row is one document")
    letters: int = option(16, "of the alphabet, from a on: 2 to 26")
    peak: float = option(2.0, f"0: the next is any, uniformly; {HIGHEST_PEAK}: almost sure (logits are peak * normal)")
    seed: int = option(0, "of the language and of its documents")

    def __post_init__(self) -> None:
        at_least("documents", self.documents, 2)
        at_least("length", self.length, 1)
        at_most("length", self.length, MOST_LENGTH)
        refuse_too_much("documents", self.documents, self.length)
        if not 2 <= self.letters <= len(ascii_lowercase):
            raise ValueError(f"letters: {self.letters!r} must be from 2 to {len(ascii_lowercase)}")
        if not 0 <= self.peak <= HIGHEST_PEAK:
            raise ValueError(f"peak: {self.peak!r} must be from 0 to {HIGHEST_PEAK}")
        at_least("seed", self.seed, 0)

    @cached_property
    @abstractmethod
    def chain(self) -> Chain: ...

    @cached_property
    @abstractmethod
    def spelling(self) -> list[str]:
        """Return how each symbol is written; all different, of one length."""

    def identity(self) -> str:
        return digest(str(VERSION), repr(self))

    def load(self, folder: Path) -> Documents:
        symbols = self.chain.sample(np.random.default_rng([self.seed, DOCUMENTS]), self.documents, self._steps)
        letters = np.array([list(word.encode()) for word in self.spelling], dtype=np.uint8)
        return InMemory([Document(row.tobytes().decode()) for row in letters[symbols]])

    def entropy(self) -> float:
        """Return the nats of a document."""
        return self.chain.entropy(self._steps)

    def log_prob(self, texts: Sequence[str]) -> np.ndarray:
        """Return log-probabilities, nats, of texts of `length` characters: float64 [D]; -inf if not made of words."""
        number = {word: index for index, word in enumerate(self.spelling)}
        size = len(self.spelling[0])
        starts = range(0, self.length, size)
        symbols = np.array([[number.get(text[i : i + size], -1) for i in starts] for text in texts])
        is_possible = (symbols >= 0).all(1)
        return np.where(is_possible, self.chain.log_prob(symbols.clip(0)), -np.inf)

    @property
    def _steps(self) -> int:
        return self.length // len(self.spelling[0])


@dataclass(frozen=True)
class Markov(Spelt):
    """A Markov chain of letters, in its stationary law from the first letter on."""

    order: int = option(1, f"letters that the next one depends on; letters ** order is at most {MOST_CONTEXTS}")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("order", self.order, 1)
        at_least("length", self.length, self.order)
        if self.order > MOST_CONTEXTS.bit_length() or self.letters**self.order > MOST_CONTEXTS:
            raise ValueError(
                f"order: {self.order!r} makes {self.letters} ** {self.order} contexts; {MOST_CONTEXTS} are allowed: "
                "lower it, or letters"
            )

    @cached_property
    def chain(self) -> Chain:
        return Chain(self.letters, self.order, self.peak, np.random.default_rng([self.seed, TRANSITION]))

    @cached_property
    def spelling(self) -> list[str]:
        return list(ascii_lowercase[: self.letters])


@dataclass(frozen=True)
class BlockMarkov(Spelt):
    """A Markov chain of words of one length, spelt at random: in a word no order of the letters is a simple one."""

    letters: int = option(4, "of the alphabet, from a on: 2 to 26")
    block: int = option(4, "letters of a word; divides length")
    words: int = option(64, f"all different; at most {MOST_CONTEXTS}, and at most letters ** block")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("block", self.block, 1)
        if self.length % self.block:
            raise ValueError(
                f"block: {self.block!r} letters don't divide a length of {self.length}; change one of them"
            )
        most = min(MOST_CONTEXTS, self.letters ** min(self.block, MOST_CONTEXTS.bit_length()))
        if not 2 <= self.words <= most:
            raise ValueError(
                f"words: {self.words!r} must be from 2 to {most} ({self.block} letters of {self.letters} kinds)"
            )

    @cached_property
    def chain(self) -> Chain:
        return Chain(self.words, 1, self.peak, np.random.default_rng([self.seed, TRANSITION]))

    @cached_property
    def spelling(self) -> list[str]:
        random = np.random.default_rng([self.seed, SPELLING])
        found: dict[str, None] = {}
        while len(found) < self.words:
            found["".join(ascii_lowercase[letter] for letter in random.integers(self.letters, size=self.block))] = None
        return list(found)
