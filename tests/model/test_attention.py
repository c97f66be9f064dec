"""Backends against the readable reference."""

import itertools

import pytest
import torch

from hybrid.model.attention import BACKENDS, SDPA, Eager, Flex, Xformers, select_backend
from hybrid.model.masks import Cached, TwoStream

CONTEXTS, PREDICTIONS = ("block_causal", "causal"), ("in_place", "next_token")
CPU = torch.device("cpu")
SHAPES = [(13, 1), (13, 3), (13, 13), (16, 4), (130, 7), (130, 80)]


def make(pattern: TwoStream, batch: int = 2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    n_queries, n_keys = pattern.queries.position.shape[1], pattern.keys.position.shape[1]
    sizes = (n_queries, n_keys, n_keys)
    return [
        torch.randn(batch, 2, n, 8, generator=generator, dtype=dtype).requires_grad_() for n in sizes
    ]  # fmt: skip


def documents_of(length: int, begin: int, batch: int = 2) -> torch.Tensor:
    starts = torch.rand(batch, begin + length, generator=torch.Generator().manual_seed(1)) < 0.2
    return starts.long().cumsum(1)


def variants():
    for (length, block_size), context, prediction, draws, masked in itertools.product(
        SHAPES, CONTEXTS, PREDICTIONS, (1, 2), (False, True)
    ):
        documents = documents_of(length, int(prediction == "next_token")) if masked else None
        for autoregressive in {False, context == "causal"}:
            pattern = TwoStream.of(
                length, block_size, context, prediction, draws, documents, autoregressive=autoregressive
            )
            yield pattern
            if pattern.reading().queries.position.shape[1]:
                yield pattern.reading()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n == "flex")) for n in BACKENDS if n not in ("eager", "xformers")],
)
def test_training_passes_agree_with_eager(name):
    """Outputs and, where the backend can train here, gradients; to rounding in float64."""
    trains = name != "flex"
    backend = BACKENDS[name](CPU, trains)
    for pattern in variants():
        if name == "flex" and (
            pattern.rows.length > 16 or pattern.rows.draws > 1 or (pattern.rows.autoregressive and pattern.rows.begin)
        ):
            continue  # uncompiled FlexAttention is slow and makes a mask of every pair
        q, k, v = make(pattern) if trains else [t.detach() for t in make(pattern)]
        expected, got = Eager()(q, k, v, pattern), backend(q, k, v, pattern)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
        if trains:
            probe = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
            for a, b in zip(
                torch.autograd.grad(got, (q, k, v), probe), torch.autograd.grad(expected, (q, k, v), probe), strict=True
            ):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_low_precision_stays_close_to_the_reference():
    pattern = TwoStream.of(130, 16)
    q, k, v = make(pattern, dtype=torch.float32)
    expected = Eager()(q, k, v, pattern)
    low = [t.detach().bfloat16().requires_grad_() for t in (q, k, v)]
    got = SDPA()(*low, pattern)
    assert (got.float() - expected).abs().max() < 0.03
    probe = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    for a, b in zip(
        torch.autograd.grad(got, low, probe.bfloat16()), torch.autograd.grad(expected, (q, k, v), probe), strict=True
    ):
        assert (a.float() - b).norm() < 0.02 * b.norm()


def test_staircase_leaves_out_most_keys():
    """The point of the chunks: of a long row, far fewer pairs are computed than a dense mask has."""
    from hybrid.model.sdpa import plan

    pattern = TwoStream.of(512, 16)
    chunks = plan(pattern, torch.float32)
    pairs = sum((c.rows.stop - c.rows.start) * sum(s.stop - s.start for s in c.spans) for c in chunks)
    dense = (pattern.rows.n_clean + pattern.rows.n_noisy) ** 2
    allowed = int(pattern.dense().sum())
    assert allowed <= pairs < 1.4 * allowed < 0.4 * dense


@pytest.mark.parametrize("name", ["sdpa", "flex"])
def test_cached_passes_agree_with_eager(name):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(3, 2, 5, 8, generator=generator)
    k, v = (torch.randn(3, 2, 9, 8, generator=generator) for _ in range(2))
    visible = torch.tensor([[1, 2, 9, 9, 9], [3, 3, 3, 8, 8], [1, 1, 1, 1, 6]])
    backend = BACKENDS[name](CPU, False)
    here, span = slice(4, 9), slice(0, 9)
    for pattern in (Cached(here, 10, visible, span), Cached(here, 10, torch.full((3, 5), 9), span, unmasked=True)):
        torch.testing.assert_close(backend(q, k, v, pattern), Eager()(q, k, v, pattern), rtol=0, atol=1e-5)


@pytest.mark.parametrize("context, prediction", itertools.product(CONTEXTS, PREDICTIONS))
def test_xformers_biases_are_the_reference_mask(context, prediction):
    """xformers computes on GPUs only; what it would be given is materialised here."""
    pytest.importorskip("xformers.ops", exc_type=ImportError)
    for length, block_size in ((13, 1), (13, 3), (13, 13)):
        pattern = TwoStream.of(length, block_size, context, prediction)
        bias = Xformers.bias(pattern, torch.float32)
        dense = pattern.dense()
        if not isinstance(bias, torch.Tensor):
            bias = bias.materialize((1, 1, *dense.shape[1:]))
        assert torch.equal(bias[0, 0] == 0, dense[0])
        assert (bias[0, 0][~dense[0]] == -torch.inf).all()
        if isinstance(bias, torch.Tensor) and not (prediction == "next_token" and block_size == 1):
            assert bias.stride(-2) % 8 == 0, "rows of a dense bias must be aligned"


def test_refusals_name_the_key_and_the_way_out():
    with pytest.raises(ValueError, match=r"model.attention: 'flex' cannot train on cpu .* use 'sdpa'"):
        Flex(CPU, training=True)
    with pytest.raises(ValueError, match=r"model.attention: 'xformers' needs a CUDA device, not cpu; use 'sdpa'"):
        Xformers(CPU)
    with pytest.raises(ValueError, match=r"model.attention: 'spda' is not one of .* \(did you mean 'sdpa'\?\)"):
        select_backend("spda", CPU, True)


def test_a_model_trained_with_a_backend_that_is_not_here_still_runs(caplog):
    with pytest.raises(ValueError, match="'xformers' needs a CUDA device"):
        select_backend("xformers", CPU, training=True)
    assert isinstance(select_backend("xformers", CPU, training=False), SDPA)
    assert "'xformers' needs a CUDA device, not cpu" in caplog.text and "'auto' takes its place" in caplog.text
    with pytest.raises(ValueError, match="'spda' is not one of"):
        select_backend("spda", CPU, training=False)


def test_auto_chooses_by_device_and_logs_why(caplog):
    with caplog.at_level("INFO", "hybrid.model.attention"):
        assert isinstance(select_backend("auto", CPU, True), SDPA)
        assert isinstance(select_backend("auto", torch.device("cuda"), False), SDPA)
        assert isinstance(select_backend("auto", torch.device("cuda"), True), Flex)
    assert [record.getMessage() for record in caplog.records] == [
        "attention: sdpa (the device is cpu)",
        "attention: sdpa (no gradients are needed: torch's kernels serve the cache)",
        "attention: flex (training on a GPU: it skips the tiles that the mask rules out)",
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["sdpa", "flex", "xformers"])
def test_gpu_backends_agree_with_eager(name):
    device = torch.device("cuda")
    backend = BACKENDS[name](device, True)
    for context, prediction in itertools.product(CONTEXTS, PREDICTIONS):
        pattern = TwoStream.of(256, 16, context, prediction, device=device)
        shape = (2, 2, pattern.keys.position.shape[1], 64)
        q, k, v = (torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        got, expected = backend(q, k, v, pattern), Eager()(q, k, v, pattern)
        torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02)
        probe = torch.randn_like(expected)
        for a, b in zip(
            torch.autograd.grad(got, (q, k, v), probe), torch.autograd.grad(expected, (q, k, v), probe), strict=True
        ):
            assert (a - b).float().norm() < 0.03 * b.float().norm()
