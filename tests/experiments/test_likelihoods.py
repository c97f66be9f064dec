"""Every likelihood stands under its block size, from the loosest to hindsight."""

from __future__ import annotations

import pytest
import torch
from text_figures import options, per_token

from hybrid.data.batches import PackedTokens
from hybrid.experiments import likelihoods
from hybrid.lm import LanguageModel


@pytest.mark.usefixtures("any_size_may_be_asked_for")
def test_every_likelihood_stands_under_its_block_size(lm: LanguageModel, split: PackedTokens) -> None:
    arguments = options(orders=["margin", "left_to_right"], rows=3, draws=2, block_size=[2, 4])
    values = likelihoods.measure([lm, lm], arguments)
    tokens = split.rows(range(3)).tokens
    assert values["exact", 1] == pytest.approx([per_token(lm, tokens, 1, "exact")] * 2)
    for size in (2, 4):
        assert values["enumerate", size][0] == pytest.approx(per_token(lm, tokens, size, "enumerate"))
        assert values["best_order", size][0] == pytest.approx(per_token(lm, tokens, size, "best_order"))
        each = {name: lm.nll(tokens, size, "policy", decoder=name) for name in arguments.orders}
        for name, result in each.items():
            assert values[name, size][0] == pytest.approx(float(result.nll.sum()) / tokens.numel())
        best = torch.stack([result.blocks for result in each.values()]).amin(0).sum()
        assert values["tightest", size][0] == pytest.approx(float(best) / tokens.numel())
    assert {size for _, size in values} == {1, 2, 4}


def test_likelihoods_come_from_the_loosest_to_hindsight() -> None:
    names = ("best_order", "margin", "tightest", "enumerate", "bound", "exact", "importance", "entropy")
    values = {(name, 4): [i + 0.0, i + 0.2] for i, name in enumerate(names) if name != "exact"}
    table = likelihoods.table({**values, ("exact", 1): [9.0, 9.0], ("bound", 2): [7.0, 7.0]})
    assert list(table.columns) == ["nats per token", "block size 1", "block size 2", "block size 4"]
    assert [row[0] for row in table.cells] == [
        "exact", "<= the bound", "<= importance-weighted bound", "random order, exact", "order: margin",
        "order: entropy", "best of these orders, in hindsight", "best of all one-token orders, in hindsight",
    ]  # fmt: skip
    assert table.cells[0][1:] == ["9.000 ± 0.000", None, None]
    assert table.cells[1][1:] == [None, "7.000 ± 0.000", "4.100 ± 0.100"]


def test_likelihoods_of_several_runs(command, runs, tmp_path):
    output = tmp_path / "likelihoods.md"
    words = ("--runs", *runs, "--block-size", 3, "--rows", 4, "--draws", 2, "--output", output)
    done = command("experiments.likelihoods", *words, "--orders", "left_to_right", "margin")
    assert done.code == 0, done.err
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.out.splitlines() if line[:1] == "|"]
    value = {line[0]: float(line[2].split()[0]) for line in cells if "±" in line[2]}
    assert value["best of all one-token orders, in hindsight"] <= value["best of these orders, in hindsight"]
    assert value["best of these orders, in hindsight"] <= value["order: margin"]
    assert value["best of all one-token orders, in hindsight"] <= value["random order, exact"]
    assert cells[2][0] == "exact" and cells[2][2] == "-", "block size 1 has a column of its own"
    assert done.out.strip() in output.read_text(encoding="utf-8")
    assert "from 2" in command("experiments.likelihoods", *words[:3], "--block-size", 1).error
