"""Engines over toy models, their texts counted, and the laws that these texts must follow."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hybrid.decoding import DECODERS, GenerationConfig
from hybrid.decoding.decoder import Prediction, View, has_own_loop
from hybrid.decoding.engine import Engine
from hybrid.likelihoods import Rows
from hybrid.likelihoods.enumerated import mask_table


def engine(model, block_size: int, decoder: Any = "first_hitting", seq_len: int = 14, **options) -> Engine:
    own = {name: options.pop(name) for name in ("document_mask", "precision", "network") if name in options}
    return Engine(model, seq_len, GenerationConfig(block_size, decoder, **options), **own)


BLOCK_DECODERS = [name for name, entry in DECODERS.items() if not has_own_loop(entry)]


def context_of(decoder: Any) -> str:
    """The context of a network that any decoder can read, by a name or a mapping: some read its clean rows."""
    entry = DECODERS[decoder if isinstance(decoder, str) else decoder["name"]]
    return "causal" if getattr(entry, "reads_causally", False) else "block_causal"


def as_name(spec: Any) -> str:
    return spec if isinstance(spec, str) else "-".join(map(str, spec.values()))


def all_texts(vocab: int, n: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(vocab), repeat=n)))


def view_of(probabilities: Tensor, is_masked: Tensor | None = None, step: int = 0, **options: Any) -> View:
    """A view made by hand of one row: (m, V) for its masked positions (default: all), the best token its candidate; a
    decoder that asks for a random number fails."""

    def draw() -> Tensor:
        raise AssertionError("the order must not be random")

    if is_masked is None:
        is_masked = torch.ones(1, len(probabilities), dtype=torch.bool)
    tokens = torch.where(is_masked, probabilities.shape[1], 0)
    prediction = Prediction(probabilities.log(), probabilities.argmax(-1))
    everywhere = torch.ones_like(is_masked)
    return View(step, tokens, is_masked, ~everywhere, everywhere, draw, lambda: prediction, **options)


class Spy:
    """A decoder that records its views and decisions, and what `look(view)` says of each view."""

    def __init__(self, inner: Any, look: Callable[[View], Any] = lambda view: None):
        self.inner, self.look, self.steps = inner, look, []
        self.min_steps = getattr(inner, "min_steps", 0)

    def start(self, view: View) -> Any:
        return self.inner.start(view)

    def select(self, view: View, state: Any) -> tuple[Tensor, Tensor | None]:
        reveal, remask = self.inner.select(view, state)
        self.steps.append((view, reveal, torch.zeros_like(reveal) if remask is None else remask, self.look(view)))
        return reveal, remask


def chi_square_alarm(counts: Tensor, probabilities: Tensor) -> float:
    """False alarm probability of a deviation this large, by the Wilson-Hilferty approximation; rare cells merged."""
    n = counts.sum()
    order = probabilities.argsort()
    expected, observed = (probabilities * n)[order], counts[order]
    cell = (expected.cumsum(0) / 8).long()  # cells of at least about 8 expected
    cells = int(cell.max()) + 1
    e = torch.zeros(cells, dtype=torch.float64).index_add_(0, cell, expected)
    o = torch.zeros(cells, dtype=torch.float64).index_add_(0, cell, observed.double())
    keep = e > 4
    e, o = torch.cat([e[keep], e[~keep].sum()[None]]), torch.cat([o[keep], o[~keep].sum()[None]])
    e, o = e[e > 0], o[e > 0]
    df = len(e) - 1
    statistic = float(((o - e) ** 2 / e).sum())
    z = ((statistic / df) ** (1 / 3) - (1 - 2 / (9 * df))) / math.sqrt(2 / (9 * df))
    return 0.5 * math.erfc(z / math.sqrt(2))


def sample_counts(model, spec: Any, block_size: int, vocab: int, length: int, n=6000, prompt=(), **options) -> Tensor:
    run = engine(model, block_size, spec, seq_len=length + len(prompt), stop_at_end=False, **options)
    rows = torch.tensor(run.generate([list(prompt)] * n, length).tokens)
    index = (rows * vocab ** torch.arange(length - 1, -1, -1)).sum(1)
    return torch.bincount(index, minlength=vocab**length)


class Conditionals:
    """p(x_l | what is known) of a block behind the tokens that a prompt gives it, from `mask_table` alone.

    A state is a tuple of tokens, None where masked; positions and states are those behind the prompt.
    """

    def __init__(self, model, vocab: int, length: int, prompt: tuple[int, ...] = ()):
        self.vocab, self.length, self.n_prompt = vocab, length, len(prompt)
        self.texts = list(itertools.product(range(vocab), repeat=length))
        rows = torch.tensor([[*prompt, *text] for text in self.texts])
        is_target = (torch.arange(rows.shape[1]) >= len(prompt)).expand(rows.shape)
        with torch.no_grad():
            (table, _), *_ = mask_table(model, Rows.of(rows, is_target), rows.shape[1])
        self.table, self.number = table.exp(), {text: i for i, text in enumerate(self.texts)}

    def __call__(self, state: tuple[int | None, ...], position: int) -> list[float]:
        """[V] at a masked position."""
        masked = sum(1 << (self.n_prompt + i) for i, token in enumerate(state) if token is None)
        found = []
        for v in range(self.vocab):
            text = tuple(v if i == position else (token or 0) for i, token in enumerate(state))
            found.append(float(self.table[self.number[text], masked, self.n_prompt + position]))
        return found

    def follow(self, choose: Callable[[dict[int, list[float]]], int]) -> Tensor:
        """(texts,) probabilities if `choose({masked position: [V]})` says which position is revealed next."""
        result = []
        for text in self.texts:
            state: tuple[int | None, ...] = (None,) * self.length
            p = 1.0
            while None in state:
                of = {i: self(state, i) for i, token in enumerate(state) if token is None}
                i = choose(of)
                p *= of[i][text[i]]
                state = (*state[:i], text[i], *state[i + 1 :])
            result.append(p)
        return torch.tensor(result, dtype=torch.float64)

    def evolve(self, steps: int, move: Callable[[tuple, int], dict[tuple, float]], start: tuple) -> Tensor:
        """(texts,) probabilities of the chain `move(state, step) -> {state: probability}`; a state holds (token, note)
        for each position."""
        now = {start: 1.0}
        for step in range(steps):
            after: dict[tuple, float] = {}
            for state, p in now.items():
                for next_state, q in move(state, step).items():
                    after[next_state] = after.get(next_state, 0.0) + p * q
            now = after
        result = torch.zeros(len(self.texts), dtype=torch.float64)
        for state, p in now.items():
            result[self.number[tuple(token for token, _ in state)]] += p
        return result
