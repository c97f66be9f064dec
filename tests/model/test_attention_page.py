"""The drawings of docs/attention.md are the patterns that the network runs with."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy import toy_model

from hybrid.model.block_pass import BlockRows, Sight
from hybrid.model.masks import TwoStream

PAGE = Path(__file__).parents[2] / "docs" / "attention.md"


def drawn(mask: Tensor, queries: Sequence[str], keys: Sequence[str]) -> str:
    """Draw booleans (q, k), a query a line, `x` where it attends; above, letter and number of each key."""
    width = max(map(len, queries))
    letters, numbers = zip(*((key[0], key[-1] if " " in key else " ") for key in keys), strict=True)
    lines = [(name, ["x" if seen else "." for seen in row]) for name, row in zip(queries, mask.tolist(), strict=True)]
    lines = [("", letters), ("", numbers), *lines]
    return "\n".join(f"{name:{width}}  {' '.join(signs)}".rstrip() for name, signs in lines)


def training(context: str, prediction: str) -> str:
    """The rows of a training pass: 8 tokens in blocks of 4."""
    pattern = TwoStream.of(8, 4, context, prediction)
    rows = pattern.rows
    names = ["begin"] * rows.begin + [f"clean {i}" for i in range(rows.n_clean - rows.begin)]
    names += [f"noisy {i}" for i in range(rows.n_noisy)]
    return drawn(pattern.dense()[0], names, names)


def generation() -> str:
    """A forward of generation, blocks of 2: two are in the cache, the third is committed, the fourth is live."""
    model, block = toy_model(), torch.zeros(2, dtype=torch.long)
    rows = BlockRows([4], [block], block[None], [2])
    mask = Sight(2).pattern(rows, model.config, model.new_cache(1, 8)).dense()[0]
    names = [*(f"clean {i}" for i in range(6)), "noisy 6", "noisy 7"]
    return drawn(mask, names[4:], names)


@pytest.mark.parametrize(
    "drawing",
    [training("block_causal", "in_place"), training("causal", "next_token"), generation()],
    ids=["training", "next_token", "generation"],
)
def test_a_drawing_is_the_pattern(drawing):
    assert f"```text\n{drawing}\n```\n" in PAGE.read_text(encoding="utf-8")


def test_nothing_else_is_drawn():
    assert len(re.findall("^```text", PAGE.read_text(encoding="utf-8"), re.MULTILINE)) == 3
