"""python -m hybrid.evaluate --decoders with so few texts that some figures do not exist."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import Command


def test_one_text_has_no_distance_between_texts(command: Command, copy_of_trained: Path) -> None:
    words = ["--checkpoint", copy_of_trained, "--rows", 2, "--draws", 1, "--samples", 1, "--new-tokens", 8]
    done = command("evaluate", *words, "--block-size", 4, "--decoders", "margin", "--judge", copy_of_trained)
    assert done.code == 0, done.err
    _, table = done.out.split("\n\n")
    heading, _, *lines = table.splitlines()
    assert "MAUVE* needs 20 texts, and as many of real text: no value (-) without them" in lines
    saved = json.loads((copy_of_trained / "eval.json").read_text())["generation"]
    for line, record in zip(lines[:2], saved, strict=True):
        cells = dict(zip(heading.split(), line.replace("(real text)", "real").split(), strict=True))
        assert (cells["selfBLEU"], cells["MAUVE*"]) == ("-", "-")
        assert (record["self_bleu"], record["mauve_like"]) == (None, None)
        assert float(cells["gen-ppl"]) > 1 and record["gen_ppl"] > 1
