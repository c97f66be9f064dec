"""Rounds of one forward: the law of plain decoding, and in each branch the draft that a forward of its own makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoding_toy import all_texts, chi_square_alarm, engine, sample_counts
from speculation_toy import KINDS, PROMPTS, SAME_TEXT, check_cache, drafting, indifferent, law_at, speculative
from torch import Tensor
from toy import nll_of, random_tokens, toy_model

from hybrid.decoding.fused_rounds import FusedRounds, Outcome
from hybrid.model.block_pass import BlockRows, Sight, rows_hidden


def fused(rule: str = "shared", length: int = 4, **more: Any) -> dict[str, Any]:
    return speculative(rule, length, fused=True, **more)


def with_outcomes(monkeypatch: pytest.MonkeyPatch, look: Any) -> None:
    """Call `look(session, outcome)` after every forward that checks."""
    checked = FusedRounds._checked

    def spied(self: FusedRounds, *args: Any) -> Outcome:
        found = checked(self, *args)
        look(self, found)
        return found

    monkeypatch.setattr(FusedRounds, "_checked", spied)


@pytest.mark.parametrize("kind", KINDS)
def test_it_writes_the_text_of_plain_decoding(kind: str) -> None:
    """Ends of text, prompts that end in MASK, cached and not."""
    model = toy_model("causal", kind, seed=1)
    plain = engine(model, 4, "autoregressive", seq_len=24, noise="gumbel", seed=3).generate(PROMPTS, 13)
    assert "end_of_text" in plain.finish_reasons
    for decoder, options in [
        (fused("match", 2), {}), (fused("argmax", 3), {"cache": False}),
        (fused("shared", 8, adapt=True), {"graphs": True}),
    ]:  # fmt: skip
        run = engine(model, 4, decoder, seq_len=24, noise="gumbel", seed=3, **options)
        whole = run.generate(PROMPTS, 13)
        assert (whole.sequences, whole.finish_reasons) == (plain.sequences, plain.finish_reasons)
        states = list(run.stream(PROMPTS, 13))
        assert states[-1].tokens == whole.tokens and states[-1].kept == tuple(whole.kept)
        assert all(model.mask_token_id not in row for state in states for row in state.tokens)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, setting", [("next_token", {"top_k": 3, "temperature": 0.7}), ("in_place", {"top_p": 0.8})], ids=str
)
def test_a_hundred_texts_are_those_of_plain_decoding(kind: str, setting: dict[str, Any]) -> None:
    model, setting = toy_model("causal", kind, seed=1), {"noise": "gumbel", "seed": 5, **setting}
    prompts = [random_tokens(1, i % 9, vocab=6, seed=i)[0].tolist() for i in range(100)]
    plain = engine(model, 4, "autoregressive", seq_len=24, **setting).generate(prompts, 8)
    for rule in SAME_TEXT:
        found = engine(model, 4, fused(rule), seq_len=24, **setting).generate(prompts, 8)
        assert (found.sequences, found.finish_reasons) == (plain.sequences, plain.finish_reasons)


@pytest.mark.thin(2)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"document_mask": True}, {"slide": True}, {}], ids=["documents", "slide", "plain"])
def test_each_branch_is_the_draft_that_a_forward_of_its_own_makes(
    kind: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the tokens that stand, with no MASK behind the end of the text, which is that of plain decoding."""
    model = toy_model("causal", kind)
    prompts = [[1, 2, 6], [6, 3, 1], [], [2, 6, 4, 4]]
    prompts = [prompt * 4 for prompt in prompts if prompt] if options.get("slide") else prompts
    seen, cut = [], []

    def look(session: FusedRounds, found: Outcome) -> None:
        for k, row in enumerate(found.live.rows):
            stand = int(found.stand[k])
            left = row.end - row.start - stand
            if left < 2:
                continue  # the last place needs no draft
            n = min(session.length, left + 1)
            drafts = drafts_behind(session, k, found.tokens[k, : stand - 1], n)
            torch.testing.assert_close(found.hidden[k, : n - 1], drafts, rtol=0, atol=1e-9)
            seen.append(stand)
            cut.append(n < session.length)

    with_outcomes(monkeypatch, look)
    setting = {"temperature": 3.0, "noise": "gumbel", "stop_at_end": False, "seq_len": 16, **options}
    plain = engine(model, 4, "autoregressive", **setting).generate(prompts, 9)
    for more in ({}, {"cache": False}, {"graphs": True}):
        assert engine(model, 4, fused(length=4), **setting, **more).generate(prompts, 9).tokens == plain.tokens
    assert len(set(seen)) > 1 and len(set(cut)) == 2


def drafts_behind(session: FusedRounds, k: int, kept: Tensor, n: int) -> Tensor:
    """(n - 1, dim) off n MASKs behind `kept` in a forward that reads the text anew."""
    model, row = session.network.model, session.active[k]
    begin, sight = model.config.begin, session.network.sight
    text = torch.tensor([model.begin_token_id] * begin + session.text[row.index, : row.start].tolist() + kept.tolist())
    documents = None if sight.documents is None else sight.documents[row.index : row.index + 1]
    cache, masks = model.new_cache(1, 60), torch.full((1, n), model.mask_token_id)
    rows = BlockRows([0], [text], masks, [n])
    with torch.no_grad():
        hidden = rows_hidden(model, cache, rows, Sight(1, documents, sight.window, reads_clean=True))[0, len(text) :]
    return hidden[:-1] if begin else hidden[1:]


@pytest.mark.slow
@pytest.mark.parametrize("kind, drafts", [("in_place", "own"), ("next_token", "random"), ("in_place", "fixed")])
def test_rejection_follows_the_autoregressive_law(kind: str, drafts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-square of 3,000 texts against the product of the conditionals; of random drafts and lengths that adapt at
    temperature 0.7, against theirs; of one bad q everywhere with four tokens, of which a refusal has several to choose
    from. False alarm below 1e-5 a case."""
    vocab, n, temperature = (4, 4, 1.0) if drafts == "fixed" else (2, 6, 0.7 if drafts == "random" else 1.0)
    model = toy_model("causal", kind, vocab=vocab, seed=4 if drafts == "fixed" else 0)
    with torch.no_grad():
        model.head_matrix().mul_(0.1 if drafts == "fixed" else 1.0)  # p is wide, so that the residual is, too
    law = law_at(temperature, (-nll_of(model, all_texts(vocab, n), 1, "causal").nll).exp(), vocab)
    torch.manual_seed(0)
    first = model.head_matrix()[0].detach()
    bad = 2.5 * first / first.norm() ** 2  # q = (.65, .14, .18, .03)
    if drafts == "random":
        drafting(monkeypatch, torch.randn_like)
    elif drafts == "fixed":
        drafting(monkeypatch, bad.expand_as)
    decoder = fused("rejection", 4 if drafts == "random" else 3, adapt=drafts == "random")
    counts = sample_counts(model, decoder, 4, vocab, n, n=3000, temperature=temperature)
    assert chi_square_alarm(counts, law) > 1e-5
    assert chi_square_alarm(counts, law_at(0.5, law, vocab)) < 1e-5, "another law is found out"


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_of_the_same_law_are_kept(kind: str) -> None:
    """Where p = q every forward but the first is full, and the last, also by rejection."""
    model = indifferent(kind)
    plain = engine(model, 4, "autoregressive", seq_len=40, seed=1, noise="gumbel").generate([[]] * 8, 30)
    for rule in ("shared", "rejection"):
        found = engine(model, 4, fused(rule, 5), seq_len=40, seed=1, noise="gumbel").generate([[]] * 8, 30)
        lengths = [len(row) - 1 for row in found.tokens]
        assert found.kept[1:5] != [8, 0, 0, 0] and found.kept[5] == sum(n // 5 for n in lengths)
        assert sum(found.kept) == 8 + sum(-(-n // 5) for n in lengths)
        if rule == "shared":
            assert (found.tokens, found.finish_reasons) == (plain.tokens, plain.finish_reasons)


@pytest.mark.thin(2)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ["match", "rejection"])
def test_no_text_depends_on_its_batch(kind: str, rule: str) -> None:
    """Nor what a forward keeps; random numbers in MASK are those of a text, too."""
    model = toy_model("causal", kind, latent=3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "latent" in name:
                p.normal_(generator=torch.Generator().manual_seed(0))
    runs = [engine(model, 4, fused(rule, 4), seq_len=24, seed=2, latent=latent) for latent in ("fresh", "none")]
    fresh, none = (run.generate(PROMPTS, 12) for run in runs)
    alone = [runs[0].generate([prompt], 12) for prompt in PROMPTS]
    assert [one.tokens[0] for one in alone] == fresh.tokens and fresh.kept != none.kept
    assert [sum(counts) for counts in zip(*(one.kept for one in alone), strict=True)] == fresh.kept
    if rule == "match":
        assert fresh.tokens == none.tokens


@pytest.mark.thin(2)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ["match", "rejection"])
def test_the_cache_is_that_of_a_fresh_prefill(kind: str, rule: str) -> None:
    """After every round, whatever of a draft did not stand."""
    model = toy_model("causal", kind)
    run = engine(model, 4, fused(rule, 4), seq_len=24, stop_at_end=False)
    session = run.decoder.loop(run, [[1, 2, 3], [], [2, 5]], 9, [3, 1, 4], None)
    check_cache(model, session)


def test_a_draft_of_no_given_length_is_short() -> None:
    run = engine(toy_model("causal", "next_token"), 8, {"name": "speculative", "fused": True}, seq_len=24)
    assert len(run.generate([[]], 9).kept) == 1 + 4
