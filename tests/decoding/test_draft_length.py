"""A length of drafts that adapts itself: by what stood in the same text, and by nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from decoding_toy import all_texts, chi_square_alarm, engine, sample_counts
from speculation_toy import KINDS, PROMPTS, drafting, indifferent, law_at, speculative
from toy import nll_of, toy_model

from hybrid.decoding.denoiser import Row
from hybrid.decoding.speculation import Lengths
from hybrid.model import Transformer


def rounds(
    model: Transformer, prompts: list[list[int]], n_new: int, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> list[list[tuple[int, bool]]]:
    """(length, whether the draft stood whole) of each round that had one, text by text."""
    found: list[list[tuple[int, bool]]] = [[] for _ in prompts]
    learn = Lengths.learn

    def spied(self: Lengths, row: Row, stood_whole: bool) -> None:
        found[row.index].append((self[row], stood_whole))
        learn(self, row, stood_whole)

    monkeypatch.setattr(Lengths, "learn", spied)
    run = engine(model, 4, speculative(**options), seq_len=60, noise="gumbel", stop_at_end=False)
    run.generate(prompts, n_new)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_it_grows_while_drafts_stand_and_shrinks_where_not(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = indifferent(kind), toy_model("causal", kind)
    whole = rounds(good, [[1, 2], []], 38, monkeypatch, rule="rejection", length=9, adapt=True)
    assert whole == [[(length, True) for length in (4, 6, 8, 9, 9)]] * 2
    fused = rounds(good, [[1, 2], []], 24, monkeypatch, rule="rejection", length=9, adapt=True, fused=True)
    assert fused == [[(length, True) for length in (4, 6, 8, 9)]] * 2
    drafting(monkeypatch, lambda hidden: -9 * hidden)
    (worst,) = rounds(bad, [[1, 2]], 16, monkeypatch, rule="argmax", length=9, adapt=True)
    assert [length for length, _ in worst][:4] == [4, 3, 3, 3]
    (worst,) = rounds(bad, [[1, 2]], 16, monkeypatch, rule="argmax", length=9, adapt=True, fused=True)
    assert [length for length, _ in worst][:5] == [4, 3, 2, 2, 2]
    (fixed,) = rounds(bad, [[1, 2]], 16, monkeypatch, length=5)
    assert {length for length, _ in fixed} == {5}


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_depends_on_the_lengths_of_its_batch(kind: str) -> None:
    model = toy_model("causal", kind, seed=1)
    plain = engine(model, 4, "autoregressive", seq_len=24, noise="gumbel", seed=3).generate(PROMPTS, 16)
    for rule in ("shared", "rejection"):
        run = engine(model, 4, speculative(rule, 8, adapt=True), seq_len=24, noise="gumbel", seed=3)
        whole = run.generate(PROMPTS, 16)
        assert [run.generate([prompt], 16).tokens[0] for prompt in PROMPTS] == whole.tokens
        assert (whole.tokens == plain.tokens) == (rule == "shared")


@pytest.mark.slow
def test_rejection_follows_the_autoregressive_law() -> None:
    """Chi-square of 3,000 texts of seven tokens, in rounds of four and then of what these have taught. False alarm
    below 1e-5."""
    model = toy_model("causal", "in_place", vocab=2)
    law = (-nll_of(model, all_texts(2, 7), 1, "causal").nll).exp()
    counts = sample_counts(model, speculative("rejection", 7, adapt=True), 7, 2, 7, n=3000)
    assert chi_square_alarm(counts, law) > 1e-5
    assert chi_square_alarm(counts, law_at(0.8, law, 2)) < 1e-5, "another law is found out"
