"""python -m hybrid.evaluate --decoders --orders: likelihoods of orders, and texts of decoders beside real text."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Command

import hybrid
from hybrid.data.batches import PackedTokens
from hybrid.decoding import DECODERS
from hybrid.decoding.fixed_order import LeftToRight
from hybrid.evaluation import comparison, quality
from hybrid.evaluation.comparison import REAL, Comparison, Setting, choose_decoders, setting_for
from hybrid.evaluation.divergence import LEAST
from hybrid.evaluation.own_model import OwnModel
from hybrid.evaluation.scores import Scores, notes, table

pytestmark = pytest.mark.usefixtures("any_size_may_be_asked_for")


# ---------------------------------------------------------------------------------------------------------------------
# Likelihoods of orders


def scores_of(lm: hybrid.LanguageModel, split: PackedTokens, **options: Any) -> Scores:
    return Scores(lm, split, contextlib.nullcontext, **{"rows": 4, "draws": 3, "batch_rows": 3, **options})


def test_every_order_is_the_likelihood_that_lm_nll_gives(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    decoders = choose_decoders(["all", "confidence:token=best"], "--orders")
    lines = scores_of(lm, split).lines([4], decoders=decoders, every=True)
    tokens = split.rows(range(4)).tokens
    found = {(line["likelihood"], line.get("decoder")): line for line in lines}
    listed = [label for method, label in found if method == "policy"]
    assert {"left_to_right", "margin", "entropy", "confidence:token=best"} <= set(listed)
    assert not {"first_hitting", "ancestral", "confidence"} & set(listed)
    expected: dict[tuple[str, str | None], dict[str, Any]] = {
        ("policy", "margin"): {"method": "policy", "decoder": "margin"},
        ("policy", "confidence:token=best"): {"method": "policy", "decoder": decoders["confidence:token=best"]},
        ("tightest", None): {"method": "policy", "decoder": [decoders[label] for label in listed]},
        ("importance", None): {"method": "importance", "draws": 3},
        ("enumerate", None): {"method": "enumerate"},
        ("best_order", None): {"method": "best_order"},
    }
    for key, options in expected.items():
        value = float(lm.nll(tokens, 4, **options).nll.sum()) / tokens.numel()
        assert found[key]["nats_per_token"] == pytest.approx(value, rel=1e-6), key
        assert found[key]["tokens"] == tokens.numel()
    assert found["importance", None]["stderr"] > 0 and found["policy", "margin"]["stderr"] == 0
    best, tightest = (found[name, None]["nats_per_token"] for name in ("best_order", "tightest"))
    assert best <= tightest <= min(found["policy", label]["nats_per_token"] for label in listed)


def test_orders_do_not_depend_on_the_batch(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    decoders = choose_decoders(["margin", "left_to_right"], "--orders")
    lines = [scores_of(lm, split, batch_rows=n).lines([4], decoders=decoders, every=True) for n in (1, 3, 100)]
    for other in lines[1:]:
        for a, b in zip(lines[0], other, strict=True):
            assert a["nats_per_token"] == pytest.approx(b["nats_per_token"], rel=1e-5), a["likelihood"]


def test_one_order_is_all_there_is_at_block_size_1(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    scores = scores_of(lm, split)
    (line,) = scores.lines([1], True, choose_decoders(["all"], "--orders"), every=True)
    assert line["likelihood"] == "exact"
    assert scores.policy(1, "margin", DECODERS["margin"]()) == pytest.approx(line["nats_per_token"], rel=1e-6)


def test_a_decoder_without_a_policy_that_was_asked_for(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    scores = scores_of(lm, split)
    with pytest.raises(ValueError, match=r"decoder: .* is random, so it has no policy likelihood"):
        scores.lines([4], decoders=choose_decoders(["first_hitting"], "--orders"))
    assert scores.policy(4, "first_hitting", DECODERS["first_hitting"]()) is None


def test_a_policy_is_evaluated_once(
    lm: hybrid.LanguageModel, split: PackedTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = scores_of(lm, split)
    line = scores.lines([4], decoders=choose_decoders(["margin"], "--orders"))[-1]
    monkeypatch.setattr("hybrid.evaluation.scores.order_nll", None)
    assert scores.policy(4, "margin", None) == line["nats_per_token"]


def test_given_tokens_do_not_count(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    import numpy as np

    half = PackedTokens(
        split.tokens, (np.arange(len(split.tokens)) % 2).astype(np.uint8), split.counts, 32, split.end_of_text
    )
    line = scores_of(lm, half).lines([4], decoders=choose_decoders(["left_to_right"], "--orders"))[-1]
    assert line["tokens"] == 4 * 16
    everything = scores_of(lm, split).lines([4], decoders=choose_decoders(["left_to_right"], "--orders"))[-1]
    assert line["nats_per_token"] != pytest.approx(everything["nats_per_token"], rel=1e-3)


def test_hindsight_is_marked() -> None:
    row = {"block_size": 4, "nats_per_token": 1.5, "stderr": 0.0, "perplexity": 4.48, "bits_per_byte": 1.0}
    lines = [{**row, "likelihood": "policy", "decoder": "confidence:token=best"}, {**row, "likelihood": "best_order"}]
    text = table(lines).splitlines()
    assert len({len(line) for line in text}) == 1
    assert "policy confidence:token=best  =   1.5" in text[2] and "~   1.5" in text[3]
    assert len(notes(lines)) == 1 and notes(lines[:1]) == []


# ---------------------------------------------------------------------------------------------------------------------
# Texts of decoders

SETTING = Setting(samples=5, new_tokens=16, seed=1)


def test_a_line_holds_the_figures_of_the_texts(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    setting = dataclasses.replace(SETTING, samples=LEAST)
    c = Comparison(lm, split, setting, OwnModel(lm))
    real, margin = c.lines([4], {"margin": DECODERS["margin"]()})
    result = lm.generate([[]] * LEAST, 16, 4, "margin", seed=1, stop_at_end=False)
    texts = [lm.tokenizer.decode(row) for row in result.tokens]
    expected = dataclasses.asdict(quality.measure(result.tokens, texts))
    assert {key: margin[key] for key in expected} == expected
    reading = OwnModel(lm).read(texts)
    assert margin["gen_ppl"] == pytest.approx(reading.gen_ppl)
    assert margin["judge_nats_per_byte"] == pytest.approx(reading.nats_per_byte)
    assert (margin["decoder"], margin["block_size"]) == ("margin", 4)
    assert margin["nfe_per_token"] == result.nfe / 16 == 1.0
    assert margin["tokens_per_second"] > 0 and 0 < margin["mauve_like"] <= 1
    assert real["decoder"] == REAL and "block_size" not in real and "nfe_per_token" not in real


def test_too_few_texts_have_no_distance_from_real_text(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    judge = OwnModel(lm)
    for samples, real_has in ((1, False), (LEAST - 1, False), (LEAST, True)):
        setting = dataclasses.replace(SETTING, samples=samples, new_tokens=4)
        lines = Comparison(lm, split, setting, judge).lines([4], {"margin": DECODERS["margin"]()})
        assert [math.isnan(line["mauve_like"]) for line in lines] == [not real_has] * 2
        said = any(f"MAUVE* needs {LEAST} texts" in note for note in comparison.notes(lines, setting, judge))
        assert said is not real_has
        cells = comparison.table(lines).splitlines()
        at = cells[0].split().index("MAUVE*")
        assert (cells[-1].split()[at] == "-") is not real_has


def test_texts_go_on_behind_an_end_of_text(
    lm: hybrid.LanguageModel, split: PackedTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All have the same length, so that their figures compare."""
    monkeypatch.setattr(lm.model, "end_of_text", lm.tokenizer.encode("e")[0])
    seen = []
    monkeypatch.setattr(comparison, "measure", lambda rows, texts: seen.append(rows) or quality.measure(rows, texts))
    Comparison(lm, split, SETTING).line(4, "margin", DECODERS["margin"]())
    assert [len(row) for row in seen[0]] == [16] * 5


def test_real_text_is_as_long_and_from_the_split(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    setting = Setting(samples=4, new_tokens=10, prompt_tokens=6)
    c = Comparison(lm, split, setting)
    assert [len(piece) for piece in [*c.pieces, *c.others]] == [10] * 8
    rows = [row.tolist() for row in split.rows(range(split.n_rows)).tokens]
    places = []
    for prompt, piece in zip(c.prompts, c.pieces, strict=True):
        places.append(rows.index(next(row for row in rows if row[:16] == prompt + piece)))
    kept = [next(i for i, row in enumerate(rows) if row[6:16] == piece) for piece in c.others]
    assert len({*places, *kept}) == 8  # what real text is compared with is other text
    assert places == sorted(places) and max(places) > split.n_rows // 2  # from all over the split


def test_a_split_with_fewer_rows_than_samples(
    lm: hybrid.LanguageModel, split: PackedTokens, caplog: pytest.LogCaptureFixture
) -> None:
    few = PackedTokens(split.tokens[: 3 * 32], None, split.counts, 32, split.end_of_text)
    c = Comparison(lm, few, Setting(samples=5, new_tokens=8, prompt_tokens=4), OwnModel(lm))
    assert "--samples: the split has 3 rows" in caplog.text
    assert len(c.prompts) == 5 and c.prompts[3] == c.prompts[0] and len(c.pieces) == 3 and c.others == []
    assert "mauve_like" not in c.real_text()


def test_new_decoders_are_compared_too(lm: hybrid.LanguageModel, split: PackedTokens) -> None:
    @dataclass(frozen=True)
    class Mine(LeftToRight):
        pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DECODERS, "mine", Mine)
        chosen = choose_decoders(["all"], "--decoders")
    assert list(chosen) == [*DECODERS, "mine"]
    line = Comparison(lm, split, SETTING, policy=scores_of(lm, split).policy).line(4, "mine", chosen["mine"])
    assert line["nfe_per_token"] == 1.0 and line["policy_nats_per_token"] > 0


def test_what_is_solved(lm: hybrid.LanguageModel, split: PackedTokens, caplog: pytest.LogCaptureFixture) -> None:
    import numpy as np

    ids, end = lm.tokenizer.encode("The value is se"), split.end_of_text
    row = [*ids, *lm.generate([ids], 16, 4, "margin", temperature=0).tokens[0][:16]]
    if end in row:
        row = [t if t != end else ids[0] for t in row]
    rows = np.array([[*row, end], [*row[:-1], (row[-1] + 1) % (end - 1), end]], dtype=np.uint16)
    is_target = np.zeros_like(rows, dtype=np.uint8)
    is_target[:, len(ids) :] = 1
    task = PackedTokens(rows.ravel(), is_target.ravel(), split.counts, rows.shape[1], end)
    setting = Setting(samples=2, new_tokens=8, temperature=0.0)
    line = Comparison(lm, task, setting).line(4, "margin", DECODERS["margin"]())
    assert (line["solved"], line["answers"]) == (0.5, 2)
    ragged = PackedTokens(rows.ravel(), is_target.ravel(), split.counts, rows.shape[1] - 1, end)
    c = Comparison(lm, ragged, setting)
    for _ in range(2):
        assert "solved" not in c.line(4, "margin", DECODERS["margin"]())
    assert caplog.text.count("solved: left out: data.seq_len") == 1


@pytest.mark.parametrize(
    "word, options",
    [
        ("confidence", {}),
        ("confidence:steps=4", {"steps": 4}),
        ("ancestral:steps=8,schedule={name: polynomial, power: 2}", {"steps": 8}),
    ],
)
def test_decoders_as_typed(word: str, options: dict[str, Any]) -> None:
    ((label, decoder),) = choose_decoders([word], "--decoders").items()
    assert label == word and isinstance(decoder, DECODERS[word.split(":")[0]])
    assert all(getattr(decoder, key) == value for key, value in options.items())


def test_a_setting_fits_the_context() -> None:
    assert setting_for(32, None, 4, samples=1).new_tokens == 28
    assert setting_for(32, 28, 4, samples=1) == Setting(1, 28, 4)


def test_the_table_of_texts_lines_up() -> None:
    line = {"decoder": "margin", "block_size": 256, "entropy": 3.2, "tokens_per_second": 12345.6, "gen_ppl": 1234.5}
    text = comparison.table([{"decoder": REAL, "entropy": 3.0}, line]).splitlines()
    assert len({len(row) for row in text}) == 1
    assert text[0].split() == ["decoder", "block", "tok/s", "entropy", "gen-ppl"]
    assert text[2].split() == ["(real", "text)", "-", "-", "3.000", "-"]
    assert text[3].split() == ["margin", "256", "12,346", "3.200", "1,234.50"]
    everything = {key: 0 for _, key, _ in comparison.COLUMNS}
    assert len(comparison.table([{"decoder": "confidence:steps=4", **everything}]).splitlines()[0]) <= 150


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def test_decoders_and_orders_in_one_command(command: Command, copy_of_trained: Path) -> None:
    words = ["--checkpoint", copy_of_trained, "--rows", 2, "--draws", 2, "--samples", 4, "--block-size", 4]
    done = command("evaluate", *words, "--decoders", "all", "--orders", "all", "--judge", copy_of_trained)
    assert done.code == 0, done.err
    saved = json.loads((copy_of_trained / "eval.json").read_text())
    assert [line["decoder"] for line in saved["generation"]] == [REAL, *DECODERS]
    likelihoods, texts = (part.splitlines() for part in done.out.split("\n\n"))
    listed = [f"{line['likelihood']} {line.get('decoder', '')}".rstrip() for line in saved["results"]]
    assert {"bound", "enumerate", "importance", "policy margin", "tightest", "best_order"} <= set(listed)
    assert [re.split(r"\s{2,}", line.strip())[1] for line in likelihoods[2:-1]] == listed
    for head in ("NFE/tok", "tok/s", "entropy", "dist-1", "dist-2", "rep-4", "selfBLEU", "gen-ppl", "MAUVE*", "policy"):
        assert head in texts[0]
    by_name = {line["decoder"]: line for line in saved["generation"]}
    policies = {line["decoder"]: line["nats_per_token"] for line in saved["results"] if "decoder" in line}
    assert by_name["margin"]["policy_nats_per_token"] == policies["margin"]
    assert by_name["first_hitting"]["policy_nats_per_token"] is None
    row = next(line for line in texts if line.startswith("margin")).split()
    assert row[2] == "1.000" and row[4] == f"{by_name['margin']['entropy']:.3f}"
    assert saved["judge"]["likelihood"] == "exact" and saved["settings"]["samples"] == 4
    assert "policy first_hitting: left out: decoder:" in done.err


def test_decoders_alone_cost_no_likelihood_of_their_orders(command: Command, copy_of_trained: Path) -> None:
    words = ["--checkpoint", copy_of_trained, "--rows", 2, "--samples", 2, "--new-tokens", 8, "--block-size", 4]
    done = command("evaluate", *words, "--decoders", "margin", "confidence:token=best", "--orders", "margin")
    assert done.code == 0, done.err
    saved = json.loads((copy_of_trained / "eval.json").read_text())
    has = {line["decoder"]: line["policy_nats_per_token"] is not None for line in saved["generation"][1:]}
    assert has == {"margin": True, "confidence:token=best": False}
    assert [line["decoder"] for line in saved["results"] if "decoder" in line] == ["margin"]


def test_texts_do_not_depend_on_the_batch(command: Command, copy_of_trained: Path) -> None:
    words = ["--checkpoint", copy_of_trained, "--rows", 3, "--samples", LEAST, "--new-tokens", 8, "--prompt-tokens", 5]
    words += ["--decoders", "margin", "--orders", "margin", "--judge", copy_of_trained]
    found = []
    for n in (1, 8):
        done = command("evaluate", *words, "--batch-rows", n)
        assert done.code == 0 and "behind 5 prompt tokens" in done.out
        found.append(json.loads((copy_of_trained / "eval.json").read_text())["generation"])
    for a, b in zip(*found, strict=True):
        for key in a.keys() - {"decoder", "tokens_per_second"}:
            assert a[key] == pytest.approx(b[key], rel=1e-5), key


BAD = [
    ("--decoders margn", "--decoders: 'margn' is not one of .* .did you mean 'margin'"),
    ("--decoders margin:step=4", r"--decoders\.step: margin has no such option"),
    ("--decoders margin:4", "--decoders: option '4' is not name=value"),
    ("--orders first_hitting", "decoder: .* no policy likelihood"),
    ("--orders margn", "--orders: 'margn' is not one of"),
    ("--decoders margin --samples 0", "--samples: 0 must be at least 1"),
    ("--decoders margin --new-tokens 33", "--new-tokens: 33 behind 0 prompt tokens exceed the context of 32"),
    ("--decoders margin --new-tokens 0", "--new-tokens: 0 is too small"),
    ("--decoders margin --prompt-tokens 32", "--prompt-tokens: 32 fill the context of 32"),
    ("--decoders margin --prompt-tokens -1", "--prompt-tokens: -1 is too small"),
    ("--decoders margin --temperature -1", "temperature: -1.0 must be"),
    ("--decoders margin --top-p 2", "top_p: 2.0 must be"),
    ("--decoders margin --judge no/such", "judge: no/such is no folder"),
    ("--judge no/such", "--judge: has no effect without --decoders"),
    ("--new-tokens 4", "--new-tokens: has no effect without --decoders"),
]


@pytest.mark.parametrize("words, message", BAD, ids=[words for words, _ in BAD])
def test_a_wrong_option_is_one_line(words: str, message: str, command: Command, trained: Path, tmp_path: Path) -> None:
    done = command("evaluate", "--checkpoint", trained, "--output", tmp_path / "e.json", "--rows", 2, *words.split())
    assert re.search(message, done.error), done.error
    assert not (tmp_path / "e.json").exists()
