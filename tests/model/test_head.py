"""Losses and gradients of the chunked head are those of torch's plain cross-entropy, whatever the chunks."""

import pytest
import torch
import torch.nn.functional as F

from hybrid.model.kernels import cross_entropy as head
from hybrid.model.kernels.cross_entropy import cross_entropies, weighted_cross_entropy


@pytest.mark.parametrize("rows", [0, 1, 13])
@pytest.mark.parametrize("at_a_time", [1, 5 * 11, 2**23])
def test_losses_and_gradients(rows, at_a_time, monkeypatch):
    monkeypatch.setattr(head, "LOGITS", at_a_time)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(11, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (rows,), generator=generator)
    weights = torch.rand(rows, generator=generator, dtype=torch.float64) * 9
    plain = F.cross_entropy(hidden @ matrix.T, targets, reduction="none")
    expected = torch.autograd.grad(3 * (plain * weights).sum(), [hidden, matrix])
    total, losses = weighted_cross_entropy(hidden, matrix, targets, weights)
    torch.testing.assert_close(losses, plain.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(total, (plain * weights).sum(), rtol=1e-12, atol=1e-12)
    got = torch.autograd.grad(3 * total, [hidden, matrix])
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert not losses.requires_grad
    torch.testing.assert_close(cross_entropies(hidden, matrix, targets), plain.detach(), rtol=0, atol=1e-12)


def test_under_autocast_losses_are_float32_and_gradients_close():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 16, generator=generator).requires_grad_()
    matrix = torch.randn(50, 16, generator=generator).requires_grad_()
    targets = torch.randint(0, 50, (40,), generator=generator)
    weights = torch.rand(40, generator=generator)
    plain = F.cross_entropy(hidden @ matrix.T, targets, reduction="none")
    expected = torch.autograd.grad((plain * weights).sum(), [hidden, matrix])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, losses = weighted_cross_entropy(hidden, matrix, targets, weights)
    assert losses.dtype == total.dtype == torch.float32
    got = torch.autograd.grad(total, [hidden, matrix])
    assert [g.dtype for g in got] == [torch.float32] * 2
    for mine, theirs in zip(got, expected, strict=True):
        assert (mine - theirs).norm() < 0.01 * theirs.norm(), "bf16 has 8 bits"


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="this torch has no linear_cross_entropy")
def test_torchs_fused_head_is_the_same_function_with_weights_of_tokens():
    """It would do as well, and is slower on a CPU: `python -m hybrid.bench head`."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(50, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 50, (40,), generator=generator)
    weights = torch.rand(40, generator=generator, dtype=torch.float64)
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=8)
    theirs = F.linear_cross_entropy(hidden, matrix, targets, reduction="none", options=options)
    expected = torch.autograd.grad((theirs * weights).sum(), [hidden, matrix])
    total, losses = weighted_cross_entropy(hidden, matrix, targets, weights)
    torch.testing.assert_close(losses, theirs.detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.autograd.grad(total, [hidden, matrix]), expected, rtol=1e-10, atol=1e-10)
