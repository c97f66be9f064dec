"""The experiment that measures estimators: what it reports is what enumeration says."""

import pytest
import torch
from toy import random_tokens, toy_model

from hybrid.data import Batch
from hybrid.experiments.estimators import contenders, figure, gradient_norms, measure_all, repeat, table
from hybrid.likelihood import enumerated_bound, mask_table
from hybrid.objective import Count, Masking, masked_loss


def batch_of(rows: int, length: int, seed: int = 0) -> Batch:
    tokens = random_tokens(rows, length, seed=seed)
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))


def test_mean_and_variance_are_the_enumerated_ones():
    """One block of 3 tokens: every n and every set. Two draws halve the variance of one. 800 repeats: the mean within
    4.5 standard errors (false alarm 7e-6), the variance within 25%."""
    model, batch = toy_model(), batch_of(1, 3)
    with torch.no_grad():
        ((block, target),) = mask_table(model, batch.tokens, 3, None, batch.is_target)
    bound = float(enumerated_bound(block, target)) / 3
    losses, squares, signal = repeat(model, batch, Count(), False, 3, 800, seed=0)
    assert abs(float(losses.mean()) - bound) < 4.5 * float(losses.std()) / 800**0.5
    sizes = torch.tensor([bin(s).count("1") for s in range(8)])
    means = -block[0].sum(-1) / sizes.clamp(min=1)
    second = sum(float((means[sizes == n] ** 2).mean()) for n in (1, 2, 3)) / 3
    variance = (second - bound**2) / 2
    assert 0.75 < float(losses.var()) / variance < 1.25
    assert signal > 0 and (squares > 0).all()


def test_gradient_norms_are_those_of_the_losses_by_count():
    """One block of two tokens, both masked: nothing is random but which of the rows is taken."""
    model, batch = toy_model(), batch_of(2, 2)
    norms = gradient_norms(model, batch, 2, seed=0)
    squares = []
    for row in range(2):
        everything = torch.ones(1, 1, 2, dtype=torch.bool)
        loss = masked_loss(model, batch.tokens[row : row + 1], Masking(everything, everything * 0.5), 2).total
        squares.append(sum(float((g**2).sum()) for g in torch.autograd.grad(loss, list(model.parameters()))))
    assert norms[1] == pytest.approx((sum(squares) / 2) ** 0.5)
    assert norms[0] > 0 and norms[0] != pytest.approx(norms[1])


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
    assert figure(results, [4]).ndim == 3


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
