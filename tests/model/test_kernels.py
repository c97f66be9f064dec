"""Each kernel against the plain form beside it, in value and gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid.model.kernels import block_attention, cross_entropy, elementwise
from hybrid.model.kernels.cross_entropy import cross_entropies, weighted_cross_entropy
from hybrid.model.masks import TwoStream
from hybrid.model.rope import Rope
from hybrid.model.sdpa import plan


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def check(kernel, plain, *inputs: Tensor) -> None:
    """The same value, and the same gradients of a random functional."""
    values = [f(*inputs) for f in (kernel, plain)]
    torch.testing.assert_close(*values, rtol=0, atol=1e-12)
    probe = drawn(*values[0].shape, seed=9).detach() if values[0].ndim else torch.tensor(0.7, dtype=torch.float64)
    gradients = [torch.autograd.grad(value, inputs, probe) for value in values]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_rms_norm(eps) -> None:
    check(
        lambda x, w: elementwise.rms_norm(x, w, eps, torch.float64),
        lambda x, w: elementwise.plain_rms_norm(x, w, eps),
        drawn(2, 3, 8), drawn(8, seed=1),
    )  # fmt: skip
    with torch.no_grad():  # torch's kernel, where no gradient is needed
        x, w = drawn(2, 3, 8), drawn(8, seed=1)
        torch.testing.assert_close(
            elementwise.rms_norm(x, w, eps, torch.float64), elementwise.plain_rms_norm(x, w, eps), rtol=0, atol=1e-12
        )


def test_rotation() -> None:
    scaled = Rope(6, 100.0, {"name": "yarn", "factor": 8.0, "original_length": 16})  # it has a factor as well
    for rope in (Rope(6, 100.0), scaled):
        angles = rope.angles(torch.tensor([[0, 3, 7]]), 8, torch.device("cpu"), torch.float64)
        x = drawn(2, 3, 4, 6)
        check(lambda t, a=angles: elementwise.rotate(t, a), lambda t, a=angles: elementwise.plain_rotate(t, a), x)
        with torch.no_grad():
            torch.testing.assert_close(elementwise.rotate(x, angles), elementwise.plain_rotate(x, angles))
            torch.testing.assert_close(elementwise.rotate(x, angles).norm(dim=-1), rope.factor * x.norm(dim=-1))


def test_a_rotation_turns_pairs_by_position_times_frequency() -> None:
    rope = Rope(4, 100.0)
    angles = rope.angles(torch.tensor([[5]]), 6, torch.device("cpu"), torch.float64)
    x = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64).view(1, 1, 1, 4)
    turned = elementwise.plain_rotate(x, angles).flatten()
    expected = torch.tensor([5.0, 0.0]).cos()[0], torch.tensor(5.0).sin()
    assert turned.tolist() == pytest.approx([float(expected[0]), 0.0, float(expected[1]), 0.0], abs=1e-6)


@pytest.mark.parametrize("documents", [None, torch.tensor([[0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2], [0] * 11])])
@pytest.mark.parametrize("sizes", [(11, 3, 1), (11, 3, 2), (11, 11, 1), (200, 16, 1)])
def test_chunked_attention(sizes, documents) -> None:
    length, block_size, draws = sizes
    if documents is not None and length != 11:
        return
    pattern = TwoStream.of(length, block_size, draws=draws, documents=documents)
    chunks = plan(pattern, torch.float64)
    n_q, n_k = pattern.queries.position.shape[1], pattern.keys.position.shape[1]
    check(
        lambda q, k, v: block_attention.chunked_attention(q, k, v, chunks),
        lambda q, k, v: block_attention.plain_chunked_attention(q, k, v, chunks),
        drawn(2, 2, n_q, 4), drawn(2, 2, n_k, 4, seed=1), drawn(2, 2, n_k, 4, seed=2),
    )  # fmt: skip


@pytest.mark.parametrize("banned", [None, 2])
def test_cross_entropy(banned, monkeypatch) -> None:
    monkeypatch.setattr(cross_entropy, "LOGITS", 4 * 7)  # four rows at a time
    targets = torch.tensor([0, 1, 6, 5, 4, 3, 1, 0, 1, 6])
    weights = torch.rand(10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    check(
        lambda h, m: cross_entropy.weighted_cross_entropy(h, m, targets, weights, banned)[0],
        lambda h, m: cross_entropy.plain_weighted_cross_entropy(h, m, targets, weights, banned),
        drawn(10, 5), drawn(7, 5, seed=1),
    )  # fmt: skip
    if banned is not None:
        matrix = drawn(7, 5, seed=1)
        loss, _ = cross_entropy.weighted_cross_entropy(drawn(10, 5), matrix, targets, weights, banned)
        assert not torch.autograd.grad(loss, matrix)[0][banned].any()


@pytest.mark.parametrize("rows", [0, 1, 13])
@pytest.mark.parametrize("at_a_time", [1, 5 * 11, 2**23])
def test_losses_and_gradients(rows, at_a_time, monkeypatch):
    monkeypatch.setattr(cross_entropy, "LOGITS", at_a_time)
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


@pytest.mark.parametrize("banned", [None, 2])
def test_a_head_that_is_filled_up_is_the_same(banned, monkeypatch):
    """11 ids, filled up to 64 as on a GPU: the others get no probability, and no gradient."""
    hidden, matrix = drawn(9, 6), drawn(11, 6, seed=1)
    targets = torch.tensor([0, 1, 10, 3, 4, 5, 6, 7, 8])
    weights = torch.rand(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def values():
        total, losses = weighted_cross_entropy(hidden, matrix, targets, weights, banned)
        return total.detach(), losses, *torch.autograd.grad(total, [hidden, matrix])

    monkeypatch.setattr(cross_entropy, "LOGITS", 4 * 64)  # four rows at a time
    expected = values()
    monkeypatch.setattr(cross_entropy, "MULTIPLE", {"cpu": 64})
    got = values()
    assert got[-1].shape == matrix.shape
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_head_on_a_gpu_is_that_of_a_cpu(dtype, monkeypatch):
    """Filled up, in chunks, with sums in float32."""
    monkeypatch.setattr(cross_entropy, "LOGITS", 30 * 1024)  # thirty rows at a time
    generator = torch.Generator().manual_seed(0)
    hidden, matrix = (torch.randn(n, 64, generator=generator) for n in (100, 1001))
    targets = torch.randint(0, 1001, (100,), generator=generator)
    weights = torch.rand(100, generator=generator)

    def values(device, dtype):
        there = [t.to(device) for t in (hidden, matrix, targets, weights)]
        h, m = there[0].requires_grad_(), there[1].requires_grad_()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            total, losses = weighted_cross_entropy(h, m, *there[2:])
        return [t.cpu() for t in (losses, *torch.autograd.grad(total, (h, m)))]

    bound = 0.01 if dtype == torch.bfloat16 else 1e-4
    for got, expected in zip(values("cuda", dtype), values("cpu", torch.float32), strict=True):
        assert (got - expected).norm() < bound * expected.norm()


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
