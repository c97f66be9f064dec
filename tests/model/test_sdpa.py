"""torch's attention: heads that share keys and values, kernels over a cache, and what is kept of patterns."""

import itertools
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F

from hybrid.model import sdpa
from hybrid.model.attention import SDPA, Eager
from hybrid.model.masks import Cached, TwoStream
from hybrid.model.sdpa import Kept, as_rows_of_one_head, over_cache, over_groups, per_query_head

CPU = torch.device("cpu")


def tensors(n_queries: int, n_keys: int, heads: int = 6, groups: int = 2):
    generator = torch.Generator().manual_seed(0)
    shapes = [(heads, n_queries), (groups, n_keys), (groups, n_keys)]
    return [
        torch.randn(2, h, n, 8, generator=generator, dtype=torch.float64).requires_grad_() for h, n in shapes
    ]  # fmt: skip


class Given:
    """A pattern that is a mask."""

    def __init__(self, allowed):
        self.allowed = allowed

    def dense(self):
        return self.allowed


@pytest.mark.parametrize(
    "groups, rows, attend", itertools.product([1, 2, 6], [1, 2], [over_groups, as_rows_of_one_head])
)
def test_heads_that_share_keys_are_those_of_repeated_keys(groups, rows, attend):
    """Outputs and gradients, with a mask for each text or for all, and without one."""
    q, k, v = tensors(5, 9, groups=groups)
    some = torch.rand(rows, 5, 9, generator=torch.Generator().manual_seed(1)) < 0.5
    some[..., 0] = True
    for allowed in (some, torch.ones(1, 5, 9, dtype=torch.bool)):
        expected = Eager()(q, per_query_head(k, 6), per_query_head(v, 6), Given(allowed))
        got = attend(q, k, v, None if allowed.all() else allowed[:, None])
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
        gradients = (torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (got, expected))
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_a_gpu_is_given_groups_in_the_form_that_its_kernels_take(monkeypatch):
    """Its fused kernels take groups in half precision without a mask; queries of a group are rows of one head else."""
    calls = []

    def record(q, k, v, **options):
        calls.append(
            (q.shape[1], k.shape[1], q.shape[2], options.get("is_causal", False), options.get("enable_gqa", False))
        )
        return q.new_empty(q.shape)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    q, k = torch.empty(2, 6, 9, 8, device="meta"), torch.empty(2, 2, 9, 8, device="meta")
    half = q.bfloat16(), k.bfloat16(), k.bfloat16()
    assert over_groups(*half, is_causal=True).shape == over_groups(q, k, k, is_causal=True).shape == q.shape
    mask = torch.empty(1, 1, 9, 9, dtype=torch.bool, device="meta")
    assert over_groups(q, k, k, mask).shape == over_groups(*half).shape == q.shape
    equal, grouped = (6, 6, 9, True, False), (6, 2, 9, True, True)
    assert calls == [grouped, equal, (2, 2, 27, False, False), (2, 2, 27, False, False)]


def test_cudnn_is_off_over_a_cache_on_a_gpu_alone(monkeypatch):
    state = [True]
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: state[-1])
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", state.append)
    with over_cache(CPU):
        assert state == [True], "nothing was switched"
    with over_cache(torch.device("cuda")):
        assert state == [True, False]
    assert state == [True, False, True], "as it was before"


def test_generation_attends_inside_of_that_context_and_training_does_not(monkeypatch):
    inside, seen, attend = [], [], F.scaled_dot_product_attention

    @contextmanager
    def entered(device):
        inside.append(device)
        yield
        inside.pop()

    def record(*arguments, **options):
        seen.append(list(inside))
        return attend(*arguments, **options)

    monkeypatch.setattr(sdpa, "over_cache", entered)
    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    q, k, v = tensors(5, 9)
    SDPA()(q, k, v, Cached(slice(4, 9), 10, torch.full((2, 5), 9), slice(0, 9), unmasked=True))
    q, k, v = tensors(9, 9)
    SDPA()(q, k, v, TwoStream.of(9, 9))
    assert seen == [[CPU], []]


def test_what_is_kept_of_patterns_is_bounded():
    """The pattern that was used last stays."""
    kept, made = Kept(), []

    def get(length):
        return kept.get(TwoStream.of(length, 1), lambda: made.append(length) or length)

    for length in range(2, 2 + 3 * sdpa.KEPT):
        assert get(length) == length and get(2) == 2
    assert made == list(range(2, 2 + 3 * sdpa.KEPT)), "each was made once, the one that is used all along too"
    assert len(kept._by_rows) == sdpa.KEPT
    assert get(3) == 3 and made[-1] == 3, "the others are made again"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("masked, is_causal", [(False, False), (True, False), (False, True)])
def test_groups_on_a_gpu_are_repeated_keys(masked, is_causal, dtype):
    q, k, v = (t.detach().to("cuda", dtype).requires_grad_() for t in tensors(9, 9))
    causal = torch.ones(9, 9, dtype=torch.bool, device="cuda").tril()[None]
    mask = causal[:, None] if masked else None
    allowed = causal if masked or is_causal else torch.ones_like(causal)
    got = over_groups(q, k, v, mask, is_causal)
    expected = Eager()(q, per_query_head(k, 6), per_query_head(v, 6), Given(allowed))
    bound = 0.03 if dtype == torch.bfloat16 else 1e-3
    torch.testing.assert_close(got, expected, rtol=bound, atol=bound)
    gradients = (torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (got, expected))
    for a, b in zip(*gradients, strict=True):
        assert (a - b).float().norm() < bound * b.float().norm()
