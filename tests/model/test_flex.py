"""FlexAttention: its masks, what it leaves to torch's other kernels, and how often it is compiled."""

import itertools

import pytest
import torch
from torch._dynamo import config
from toy import CONTEXTS, PREDICTIONS

from hybrid.model import flex
from hybrid.model.attention import Eager, Flex
from hybrid.model.masks import Coordinates, TwoStream

CPU = torch.device("cpu")


def documents_of(length: int, begin: int, batch: int = 2) -> torch.Tensor:
    starts = torch.rand(batch, begin + length, generator=torch.Generator().manual_seed(1)) < 0.2
    return starts.long().cumsum(1)


def tensors(pattern: TwoStream, batch: int = 2, heads: int = 4, groups: int = 2):
    generator = torch.Generator().manual_seed(0)
    n_queries, n_keys = pattern.queries.position.shape[1], pattern.keys.position.shape[1]
    shapes = [(heads, n_queries), (groups, n_keys), (groups, n_keys)]
    return [torch.randn(batch, h, n, 16, generator=generator) for h, n in shapes]


def reference(q, k, v, pattern):
    shared = q.shape[1] // k.shape[1]
    return Eager()(q, k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1), pattern)


@pytest.mark.parametrize("context, prediction", itertools.product(CONTEXTS, PREDICTIONS))
def test_flex_block_mask_is_the_reference_mask(context, prediction):
    """The predicate that is compiled on a GPU, evaluated here at every pair."""
    for documents in (None, documents_of(13, int(prediction == "next_token"))):
        pattern = TwoStream.of(13, 3, context, prediction, 1, documents)
        mod = Flex(CPU, False).block_mask(pattern).mask_mod
        dense = pattern.dense()
        rows, n_q, n_k = dense.shape
        for b in range(rows):
            q, k = torch.meshgrid(torch.arange(n_q), torch.arange(n_k), indexing="ij")
            got = mod(torch.full_like(q, b), torch.zeros_like(q), q, k)
            assert torch.equal(got, dense[b])


def test_flex_block_masks_are_made_once_per_pattern():
    backend = Flex(CPU, False)
    first = backend.block_mask(TwoStream.of(16, 4))
    assert backend.block_mask(TwoStream.of(16, 4)) is first
    assert backend.block_mask(TwoStream.of(16, 8)) is not first


@pytest.mark.parametrize("only_read", [False, True])
def test_a_mask_over_documents_copies_no_index_to_the_device(monkeypatch, only_read):
    """torch makes a tensor of an index that is a number, where the predicate is; a host waits for its way to a GPU."""
    pattern = TwoStream.of(13, 3, prediction="next_token", documents=documents_of(13, 1))
    pattern = pattern.reading() if only_read else pattern
    made, make = [], torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *a, **k: made.append(a) or make(*a, **k))
    mask = Flex(CPU, False).block_mask(pattern)
    assert mask.shape[0] == 2 and not made


def test_causal_and_full_passes_are_left_to_torch(monkeypatch):
    """They have kernels of their own; a block-causal pass does not."""

    def refuse(device_type):
        raise AssertionError("flex")

    monkeypatch.setattr(flex, "flex_kernel", refuse)
    backend = Flex(CPU, False)
    for pattern in (TwoStream.of(12, 1, "causal", "next_token"), TwoStream.of(12, 12)):
        q, k, v = tensors(pattern)
        torch.testing.assert_close(backend(q, k, v, pattern), reference(q, k, v, pattern), rtol=0, atol=1e-5)
    with pytest.raises(AssertionError, match="flex"):
        backend(*tensors(TwoStream.of(12, 3)), TwoStream.of(12, 3))


def test_kinds_of_patterns_differ_in_sizes_alone():
    """Queries and keys that share memory, or have other strides, would be compiled anew."""
    for pattern in (TwoStream.of(13, 3), TwoStream.of(13, 3).reading()):
        mod = Flex(CPU, False).block_mask(pattern).mask_mod
        held = [cell.cell_contents for cell in mod.__closure__ if isinstance(cell.cell_contents, Coordinates)]
        parts = [t for c in held for t in (c.position, c.start, c.draw)]
        assert len({t.data_ptr() for t in parts}) == len(parts) == 6
        assert all(t.dim() == 1 and t.is_contiguous() and t.dtype == torch.int32 for t in parts)


@pytest.mark.slow
def test_a_kernel_too_many_is_an_error(monkeypatch):
    """torch would go on with dense scores and a warning."""
    kernel = flex.compiled_flex("eager")
    assert config.recompile_limit >= flex.KERNELS
    monkeypatch.setattr(flex, "flex_kernel", lambda _: kernel)
    backend = Flex(CPU, False)
    first, second = TwoStream.of(40, 4, draws=3), TwoStream.of(40, 4, "causal", draws=3)
    few = config.patch(recompile_limit=1)
    with few, torch.no_grad():
        backend(*tensors(first, 3), first)
        with pytest.raises(ValueError, match=r"model.attention: 'flex' .* 1 at most; .* use 'sdpa'"):
            backend(*tensors(second, 3), second)
