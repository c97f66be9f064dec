"""FLOPs where attention is FlexAttention, which torch cannot count: from the pairs that the pattern allows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from hybrid.bench import parts, training
from hybrid.bench.cost import AllowedPairs, count_flops, countable
from hybrid.model.attention import BACKENDS, SDPA, Flex
from hybrid.model.masks import Pattern, TwoStream

Setting = Callable[..., training.Setting]


class FlexOfACard(Flex):
    """Computes on a CPU, and meets a counter of FLOPs as FlexAttention does."""

    def __post_init__(self) -> None:
        pass

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
        if _get_current_dispatch_mode() is not None:
            raise TypeError("no implementation found for 'torch.ops.higher_order.flex_attention'")
        return SDPA()(q, k, v, pattern)


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> training.Setting:
    """Trains with FlexAttention."""
    from hybrid.model import ModelConfig

    monkeypatch.setitem(BACKENDS, "flex", FlexOfACard)
    model = ModelConfig(dim=16, n_layers=2, n_heads=2, attention="flex")
    return training.Setting(model, 11, seq_len=16, rows=2, block_size=4, precision="fp32", device="cpu")


@pytest.mark.slow
def test_a_training_step_is_counted_with_flex(setting: training.Setting) -> None:
    """Two layers, of which the last one computes only the rows that are read."""
    rows = {row.variant: row for row in training.measure(setting, 1, False)}
    assert len(rows) == 5
    pattern = TwoStream.of(16, 4)
    allowed = sum(int(p.dense().sum()) for p in (pattern, pattern.reading()))
    attention = 7 * 2 * allowed * setting.rows * 16  # heads times their width
    stand_in = AllowedPairs()
    count_flops(training.make_step(setting, "block size 4", stand_in), stand_in)
    assert stand_in.flops == attention
    without = count_flops(training.make_step(setting, "block size 4", AllowedPairs()))
    assert rows["block size 4"].gflops == (without + attention) / 1e9


def test_attention_of_a_layer_is_counted_with_flex(setting: training.Setting) -> None:
    rows = {row.attention: row for row in parts.attention(setting, 1)}
    allowed = int(TwoStream.of(16, 4).dense().sum())
    assert rows["flex"].gflops == 7 * 2 * allowed * setting.rows * 16 / 1e9


@pytest.mark.parametrize("needs_gradient, products", [(True, 7), (False, 2)])
def test_pairs_are_counted_as_torch_counts_its_kernels(needs_gradient: bool, products: int) -> None:
    """A pattern that allows every pair costs what torch's dense kernel says."""
    pattern = TwoStream.of(8, 8)
    q, k, v = (torch.randn(3, 2, 8, 4, requires_grad=needs_gradient) for _ in range(3))
    found = []
    for attend in (AllowedPairs(), SDPA()):

        def run(attend=attend) -> None:
            out = attend(q, k, v, pattern)
            if needs_gradient:
                torch.autograd.grad(out.sum(), (q, k, v))

        found.append(count_flops(run, attend))
    assert found == [products * 2 * 3 * 2 * 8 * 8 * 4] * 2


def test_documents_are_pairs_of_each_row() -> None:
    documents = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1]])
    pattern, attend = TwoStream.of(4, 4, documents=documents), AllowedPairs()
    q = torch.randn(2, 1, 4, 2)
    attend(q, q, q, pattern)
    assert attend.flops == 2 * 2 * (16 + 8) * 2


def test_torchs_own_kernels_stay() -> None:
    attend = SDPA()
    assert countable(attend) is attend
    assert isinstance(countable(FlexOfACard()), AllowedPairs)
