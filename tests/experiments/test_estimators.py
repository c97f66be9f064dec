"""The table of estimators: what is biased is told, the least noise comes first."""

from __future__ import annotations

import pytest
import torch
from toy import random_tokens, toy_model

from hybrid.data.batches import Batch
from hybrid.experiments.estimators import plot, table
from hybrid.experiments.measuring.gradient_noise import (
    REFERENCE,
    Measured,
    contenders,
    measure_all,
)


def batch_of(rows: int, length: int, seed: int = 0) -> Batch:
    tokens = random_tokens(rows, length, seed=seed)
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))


def test_the_least_gradient_variance_comes_first():
    def measured(name, variance, loss_variance=1.0, size=4, signal=2.0):
        return Measured(name, size, "clipped" in name, 1.0, 0.1, 0.5, loss_variance, 0.2, variance, 0.4, signal)

    results = [measured(REFERENCE, 8.0, 2.0), measured("count", 2.0), measured("clipped", 4.0, signal=-1.0)]
    rows = table([*results, measured("count", 9.0, size=8)], 4).cells
    assert [row[0] for row in rows] == ["count", "clipped (biased)", REFERENCE]
    assert rows[0][3:] == ["1", "0.500 ± 0.100", "0.250 ± 0.050", "1"] and rows[1][-1] is None


@pytest.mark.slow
def test_the_table_tells_biased_from_unbiased():
    """A few repeats of every contender on a toy. All unbiased ones within 5 standard errors of the pooled mean."""
    model, batch = toy_model(dtype=torch.float32), batch_of(3, 8)
    results = measure_all(model, batch, batch_of(3, 8, seed=1), 4, repeats=40, seed=0)
    assert [r.name for r in results] == list(contenders(4, [1.0] * 4))
    for r in results:
        assert r.is_biased == ("clipped" in r.name)
        assert r.is_biased or abs(r.deviation) < 5, r
    by_name = {r.name: r for r in results}
    assert by_name["count"].gradient_variance < by_name["time, linear, independent times"].gradient_variance
    text = table(results, 4).markdown()
    assert text.count("\n") == len(results) + 3 and "(biased)" in text
    assert plot(results, [4]).ndim == 3


def test_the_command_writes_what_it_prints(command, trained, tmp_path):
    output = tmp_path / "noise.md"
    words = ("--checkpoint", trained, "--block-size", 4, "--rows", 1, "--repeats", 3)
    done = command("experiments.estimators", *words, "--output", output)
    assert done.code == 0, done.err
    assert done.out.strip() in output.read_text(encoding="utf-8") and output.with_suffix(".png").is_file()
    assert "seed 0" in output.read_text(encoding="utf-8")
    output.write_text("mine")
    assert "was not written by an experiment" in command("experiments.estimators", *words, "--output", output).error
    assert output.read_text() == "mine"
    assert (
        "--block-size: at block size 1"
        in command("experiments.estimators", "--checkpoint", trained, "--block-size", 1).error
    )
    assert "--rows: 0 is too small" in command("experiments.estimators", *words[:2], "--rows", 0).error
