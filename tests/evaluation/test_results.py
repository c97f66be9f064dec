"""Lines of decoders as text."""

from __future__ import annotations

from hybrid.evaluation.results import REAL, DecoderResult, columns, table


def test_the_table_of_texts_lines_up() -> None:
    numbers = {"entropy": 3.2, "gen_ppl": 1234.5}
    line = DecoderResult("margin", numbers, 256, tokens_per_second=12345.6)
    text = table([DecoderResult(REAL, {"entropy": 3.0}), line]).splitlines()
    assert len({len(row) for row in text}) == 1
    assert text[0].split() == ["decoder", "block", "tok/s", "entropy", "gen-ppl"]
    assert text[2].split() == ["(real", "text)", "-", "-", "3.000", "-"]
    assert text[3].split() == ["margin", "256", "12,346", "3.200", "1,234.50"]
    everything = {column.key: 0 for column in columns()}
    assert len(table([DecoderResult("confidence:steps=4", everything)]).splitlines()[0]) <= 150
