"""A metric of one's own: an entry of the table, registered by a module that the run names."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import Command

from hybrid.evaluation import METRICS
from hybrid.likelihoods import LIKELIHOODS

MODULE = '''
from dataclasses import dataclass
from hybrid.evaluation import METRICS, Column, Metric

@dataclass(frozen=True)
class Shared(Metric):
    """Share of the words that real text has, too."""

    columns = (Column("shared", "shared_words", ".2f"),)
    needs_reference = True

    def measure(self, texts, reference):
        known = set(" ".join(reference.texts).split())
        words = " ".join(texts.texts).split()
        return {"shared_words": sum(word in known for word in words) / max(len(words), 1), "words": len(words)}

    def notes(self, numbers, model):
        return [f"shared: of {sum(of_line['words'] for of_line in numbers)} words"]

METRICS["shared"] = Shared
'''


def test_evaluate_prints_and_writes_an_entry_of_ones_own(
    command: Command, copy_of_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics_of_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    config = (copy_of_trained / "config.yaml").read_text()
    (copy_of_trained / "config.yaml").write_text(config.replace("imports: []", "imports: [metrics_of_mine]"))
    words = ["--checkpoint", copy_of_trained, "--block-size", 4, "--rows", 2, "--draws", 1, "--samples", 3]
    try:
        done = command("evaluate", *words, "--decoders", "margin", "--new-tokens", 8)
        told = command("evaluate", "--imports", "metrics_of_mine", "--help")
    finally:
        METRICS.pop("shared", None)
        sys.modules.pop("metrics_of_mine", None)
    assert done.code == 0, done.err
    assert told.code == 0 and "shared: Share of the words that real text has, too." in told.out
    for entry in (*METRICS, *LIKELIHOODS):
        assert f"\n      {entry}: " in told.out, entry
    heading, _, real, margin = done.out.split("\n\n")[1].splitlines()[:4]
    at = heading.split().index("shared")
    lines = json.loads((copy_of_trained / "eval.json").read_text())["generation"]
    for text, line in zip((real.replace("(real text)", "real"), margin), lines, strict=True):
        assert line["words"] > 0 and text.split()[at] == f"{line['shared_words']:.2f}"
    assert f"shared: of {sum(line['words'] for line in lines)} words" in done.out.splitlines()
