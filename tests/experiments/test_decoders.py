"""Decoders compared on text: each seed writes its own, numbers by hand."""

from __future__ import annotations

import itertools

import pytest
from text_figures import entropy, options, per_token

from hybrid.data.batches import PackedTokens
from hybrid.experiments import (
    decoders,
)
from hybrid.lm import LanguageModel
from hybrid.results.table import Table


def test_every_seed_writes_texts_of_its_own(lm: LanguageModel, split: PackedTokens) -> None:
    """The figures of each seed are those of the texts that the model writes with it."""
    arguments = options(decoders=["first_hitting", "margin"], block_size=4, new_tokens=16, samples=4, rows=2)
    found = decoders.compare(lm, None, split, options(**vars(arguments), seeds=[0, 3, 11]))
    rows_of = {row.decoder: row for row in found}
    assert list(rows_of) == ["(real text)", "first_hitting", "margin"]
    for name in ("first_hitting", "margin"):
        texts = [lm.generate([[]] * 4, 16, 4, name, seed=seed, stop_at_end=False).tokens for seed in (0, 3, 11)]
        assert rows_of[name].entropy == pytest.approx([entropy(rows) for rows in texts])
        pairs = [[pair for row in rows for pair in itertools.pairwise(row)] for rows in texts]
        assert rows_of[name].distinct_2 == [len(set(p)) / len(p) for p in pairs]
        assert len(set(rows_of[name].entropy)) == 3
    policy = per_token(lm, split.rows(range(2)).tokens, 4, "policy", decoder="margin")
    assert rows_of["margin"].policy_nats_per_token == pytest.approx([policy] * 3)


def test_columns_of_decoders() -> None:
    """Errors where seeds differ; of a speed none; a dash where nothing is known."""
    made = {"nfe_per_token": 0.5, "entropy": 2.0, "distinct_2": 0.1, "repetition": 0.2, "self_bleu": 0.3}
    one = [
        {**made, "tokens_per_second": 1000.0, "gen_ppl": 10.0},
        {**made, "tokens_per_second": 3000.0, "gen_ppl": 14.0},
    ]
    table = Table([decoders.Row.of("b", one), decoders.Row.of("a", [made])])
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.cells]
    assert [row["decoder"] for row in rows] == ["b", "a"], "as they were asked for"
    assert rows[0]["gen-ppl"] == "12.00 ± 2.00" and rows[0]["tokens/s"] == "2,000"
    shown = [rows[0][name] for name in ("forwards per token", "entropy", "distinct-2", "repetition", "self-BLEU")]
    assert (
        shown == ["0.500", "2.000", "0.100", "0.200", "0.300"] and rows[1]["gen-ppl"] is rows[1]["policy NLL"] is None
    )


def test_decoders_are_compared_on_text(command, trained, tmp_path):
    output = tmp_path / "decoders.md"
    runs = ("--checkpoint", trained, "--judge", trained, "--seeds", 0, 1, "--output", output)
    words = ("--decoders", "margin", "first_hitting:steps=2", "--samples", 4, "--new-tokens", 12, "--rows", 2)
    done = command("experiments.decoders", *runs, *words)
    assert done.code == 0, done.err
    text = output.read_text(encoding="utf-8")
    assert done.out.strip() in text and "seeds 0, 1" in text and output.with_suffix(".png").is_file()
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in done.out.splitlines() if line[:1] == "|"}
    assert rows["margin"][0].strip() == "1.000" and rows["first_hitting:steps=2"][0].strip() == "0.500"
    assert rows["(real text)"][0].strip() == "-"
    assert rows["margin"][-1].strip() != "-" and rows["first_hitting:steps=2"][-1].strip() == "-", "policy likelihood"
