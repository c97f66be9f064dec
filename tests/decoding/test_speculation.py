"""Speculation writes the autoregressive law of a network: the text of plain decoding, or another of the same law."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoding_toy import all_texts, chi_square_alarm, engine, sample_counts
from speculation_toy import KINDS, PROMPTS, SAME_TEXT, check_cache, drafting, indifferent, law_at, speculative
from toy import nll_of, random_tokens, toy_model

from hybrid.decoding.acceptance import RULES

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {},
    "cold_top_k": {"top_k": 3, "temperature": 0.7},
    "hot_top_p": {"top_p": 0.8, "temperature": 1.2},
    "inverse": {"noise": "inverse"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_writes_the_text_of_plain_decoding(kind: str) -> None:
    """Ends of text, prompts that end in MASK, cached and not; rows are the same alone."""
    model = toy_model("causal", kind, seed=1)
    plain = engine(model, 4, "autoregressive", seq_len=24, noise="gumbel", seed=3).generate(PROMPTS, 13)
    assert "end_of_text" in plain.finish_reasons
    if kind == "next_token":
        at_1 = engine(model, 1, seq_len=24, noise="gumbel", seed=3).generate(PROMPTS, 13)
        assert (at_1.sequences, at_1.finish_reasons) == (plain.sequences, plain.finish_reasons)
    for rule, length, options in [("match", 2, {}), ("argmax", 5, {"cache": False}), ("shared", 8, {"graphs": True})]:
        run = engine(model, 4, speculative(rule, length), seq_len=24, noise="gumbel", seed=3, **options)
        whole = run.generate(PROMPTS, 13)
        assert (whole.sequences, whole.finish_reasons) == (plain.sequences, plain.finish_reasons)
        assert [run.generate([prompt], 13).tokens[0] for prompt in PROMPTS] == whole.tokens
        states = list(run.stream(PROMPTS, 13))
        assert states[-1].tokens == whole.tokens and states[-1].kept == tuple(whole.kept)
        assert all(model.mask_token_id not in row for state in states for row in state.tokens)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_hundred_texts_are_those_of_plain_decoding(kind: str, name: str) -> None:
    model, setting = toy_model("causal", kind, seed=1), {"noise": "gumbel", "seed": 5, **SETTINGS[name]}
    prompts = [random_tokens(1, i % 9, vocab=6, seed=i)[0].tolist() for i in range(100)]
    plain = engine(model, 4, "autoregressive", seq_len=24, **setting).generate(prompts, 8)
    for rule in SAME_TEXT:
        found = engine(model, 4, speculative(rule, 4), seq_len=24, **setting).generate(prompts, 8)
        assert (found.sequences, found.finish_reasons) == (plain.sequences, plain.finish_reasons)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"document_mask": True}, {"slide": True}], ids=["documents", "slide"])
def test_it_sees_what_plain_decoding_sees(kind: str, options: dict[str, Any]) -> None:
    """A prompt that ends a document, and texts longer than the context; static forwards see the same."""
    model = toy_model("causal", kind)
    prompts = [[1, 2, 6], [6, 3, 1], [2, 6, 4, 4]]
    wide = [prompt * 4 for prompt in prompts] if options.get("slide") else prompts
    plain = engine(model, 4, "autoregressive", seq_len=16, stop_at_end=False, **options).generate(wide, 12)
    for more in ({}, {"cache": False}, {"graphs": True}):
        run = engine(model, 4, speculative("argmax", 3), seq_len=16, stop_at_end=False, **options, **more)
        assert run.generate(wide, 12).tokens == plain.tokens


@pytest.mark.parametrize("kind", KINDS)
def test_random_numbers_in_mask_change_drafts_and_no_text(kind: str) -> None:
    model = toy_model("causal", kind, latent=3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "latent" in name:
                p.normal_(generator=torch.Generator().manual_seed(0))
    plain = engine(model, 4, "autoregressive", seq_len=24, seed=2).generate(PROMPTS, 12)
    runs = [engine(model, 4, speculative(), seq_len=24, seed=2, latent=latent) for latent in ("fresh", "none")]
    fresh, none = (run.generate(PROMPTS, 12) for run in runs)
    assert fresh.tokens == none.tokens == plain.tokens and fresh.kept != none.kept


@pytest.mark.parametrize("kind", KINDS)
def test_behind_the_end_of_a_document_a_text_begins_anew(kind: str) -> None:
    """The best tokens, in float64: nothing of the document before is seen."""
    model = toy_model("causal", kind, seed=1)
    for decoder in ("autoregressive", speculative(length=3)):
        run = engine(model, 4, decoder, temperature=0, document_mask=True, stop_at_end=False)
        ended, begun, going_on = run.generate([[1, 2, 6], [], [1, 2]], 9).tokens
        assert ended == begun != going_on


@pytest.mark.parametrize("kind", KINDS)
def test_bad_drafts_cost_time_only(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model("causal", kind)
    plain = engine(model, 4, "autoregressive", seq_len=24, seed=2).generate(PROMPTS, 9)
    drafting(monkeypatch, lambda hidden: 3 * torch.randn(hidden.shape, dtype=hidden.dtype))
    torch.manual_seed(0)
    for rule in SAME_TEXT:
        assert engine(model, 4, speculative(rule), seq_len=24, seed=2).generate(PROMPTS, 9).tokens == plain.tokens


@pytest.mark.slow
@pytest.mark.parametrize("kind, random", [("next_token", False), ("in_place", False), ("next_token", True)])
def test_rejection_follows_the_autoregressive_law(kind: str, random: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-square of 3,000 texts of four tokens, two of them drafted, against the product of the conditionals; at
    temperature 0.7 against theirs. False alarm below 1e-5 a case."""
    model = toy_model("causal", kind, vocab=3)
    if random:
        torch.manual_seed(0)
        drafting(monkeypatch, lambda hidden: torch.randn(hidden.shape, dtype=hidden.dtype))
    law, temperature = (-nll_of(model, all_texts(3, 4), 1, "causal").nll).exp(), 1.0
    if random:
        law, temperature = law_at(0.7, law), 0.7
    counts = sample_counts(model, speculative("rejection", 4), 4, 3, 4, n=3000, temperature=temperature)
    assert chi_square_alarm(counts, law) > 1e-5
    assert chi_square_alarm(counts, law_at(0.8, law)) < 1e-5, "another law is found out"


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_of_the_same_law_are_kept_to_the_end_of_the_text(kind: str) -> None:
    """Where p = q every round is full, but for the last: also by rejection. A run may hold the end of text."""
    model = indifferent(kind)
    plain = engine(model, 4, "autoregressive", seq_len=40, seed=1, noise="gumbel").generate([[]] * 8, 30)
    assert "end_of_text" in plain.finish_reasons and any(len(row) % 5 not in (0, 1) for row in plain.tokens)
    for rule in ("shared", "rejection"):
        found = engine(model, 4, speculative(rule, 5), seq_len=40, seed=1, noise="gumbel").generate([[]] * 8, 30)
        assert sum(found.kept) == sum(-(-len(row) // 5) for row in found.tokens)
        assert found.kept[5] == sum(len(row) // 5 for row in found.tokens)
        if rule == "shared":
            assert (found.tokens, found.finish_reasons) == (plain.tokens, plain.finish_reasons)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_the_cache_is_that_of_a_fresh_prefill(kind: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After every round, whatever of a draft did not stand."""
    model = toy_model("causal", kind)
    run = engine(model, 4, speculative(rule, 6), seq_len=24, stop_at_end=False)
    session = run.decoder.loop(run, [[1, 2, 3], [], [2, 5]], 12, [3, 1, 4], None)
    check_cache(model, session)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match=r"decoder: Speculative\(.*\) needs a network of prediction=next_token, or an"):
        engine(toy_model(), 4, "speculative")
    model = toy_model("causal", "next_token")
    for options, message in [
        ({"decoder": speculative(length=1)}, "decoder.length: 1 must be an integer from 2 to 1000000, or null"),
        ({"decoder": speculative(length=17, fused=True)}, "decoder.length: 17 must be at most 16 with fused=true"),
        ({"decoder": speculative("guess")}, "rule: 'guess' is not one of argmax, match, rejection, shared"),
        (
            {"decoder": speculative(), "guidance": 1.0},
            r"guidance: 1.0 is nothing for decoder speculative \(.*\), which",
        ),
        ({"decoder": "autoregressive", "planner": model}, "planner: another network is nothing for decoder auto"),
    ]:
        with pytest.raises(ValueError, match=message):
            engine(model, 4, **options)
    with pytest.raises(ValueError, match=r"decoder: speculative \(.* behind the gap at token 1 of prompt 0"):
        engine(model, 4, speculative()).generate([[1, model.mask_token_id, 2]], 3)
