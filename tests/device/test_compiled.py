"""What is compiled on a GPU, as far as a CPU can say: masks without values, graphs, and a layer by inductor."""

from __future__ import annotations

import itertools
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended_device import pretended_gpu
from torch import Tensor
from toy import CONTEXTS, PREDICTIONS, random_tokens, toy_model

from hybrid.model import flex
from hybrid.model.attention import BACKENDS
from hybrid.model.masks import TwoStream
from hybrid.objectives.cross_entropy import masked_loss
from hybrid.objectives.estimators import Masking


def test_what_torch_says_where_it_compiles_or_waits_fails_no_test() -> None:
    """The first in the words of the torch that is installed."""
    source = Path(torch.__file__).parent.joinpath("_inductor", "compile_fx.py").read_text(encoding="utf-8")
    hint = re.search(r'"(TensorFloat32 tensor cores [^"]*)"', source)
    assert hint is not None
    warnings.warn(hint[1], UserWarning, stacklevel=1)
    sync = "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations"
    warnings.warn(sync, UserWarning, stacklevel=1)
    settings = "Please use the new API settings to control TF32 behavior, such as torch.backends.cudnn.conv"
    warnings.warn(settings, UserWarning, stacklevel=1)  # of `torch.get_float32_matmul_precision`, from 2.9 on
    with pytest.raises(UserWarning):
        warnings.warn("anything else", UserWarning, stacklevel=1)


def patterns(context: str, prediction: str, documents: bool, device: torch.device) -> list[TwoStream]:
    """Those of all layers but the last, and of the last."""
    begin = int(prediction == "next_token")
    numbers = torch.zeros(2, begin + 256, dtype=torch.long, device=device) if documents else None
    whole = TwoStream.of(256, 16, context, prediction, 2, numbers, device=device)
    return [whole, whole.reading()]


VARIANTS = list(itertools.product(CONTEXTS, PREDICTIONS, (False, True)))


@pytest.mark.slow
def test_masks_depend_on_no_value() -> None:
    """Made of tensors that have none: whoever reads one gets an error."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    backend = BACKENDS["flex"](torch.device("cpu"), False)
    for *variant, documents in VARIANTS:
        with FakeTensorMode():
            for pattern in patterns(*variant, documents, torch.device("cpu")):
                dense, sparse = pattern.dense(), backend.block_mask(pattern)
                assert sparse.shape[-2:] == dense.shape[-2:]
                assert sparse.shape[0] == dense.shape[0] == (2 if documents else 1)


def test_no_mask_waits_for_the_gpu() -> None:
    """Nor is made elsewhere: neither the dense ones nor those of FlexAttention."""
    cuda = torch.device("cuda")
    with pretended_gpu() as gpu:
        backend = BACKENDS["flex"](cuda, True)
        for variant in VARIANTS:
            for pattern in patterns(*variant, cuda):
                assert pattern.dense().is_cuda and backend.block_mask(pattern).kv_indices.is_cuda
    assert gpu.waits == {}


@pytest.mark.slow
def test_a_run_over_several_block_sizes_compiles_few_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six at most, whatever follows: the whole pattern and that of the last layer, for fixed sizes and then for any,
    in training and in validation, whose batches have other numbers of rows."""
    graphs = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    kernel = flex.compiled_flex(counting)
    monkeypatch.setattr(flex, "flex_kernel", lambda device_type: kernel)
    backend = flex.Flex(torch.device("cpu"), False)

    def forward(block_size: int, batch: int) -> None:
        whole = TwoStream.of(64, block_size, "causal", "next_token")
        for pattern in (whole, whole.reading()):
            q, k = (
                torch.zeros(batch, 2, c.position.shape[1], 16) for c in (pattern.queries, pattern.keys)
            )  # fmt: skip
            backend(q, k, k, pattern)

    for _ in range(2):
        for block_size in (4, 8, 16, 64, 1):
            forward(block_size, 2)
        with torch.no_grad():
            for block_size, batch in ((4, 3), (8, 1), (1, 3)):
                forward(block_size, batch)
    assert 2 <= len(graphs) <= 6


def loss_of(model: Any, rows: int) -> Tensor:
    tokens = random_tokens(rows, 12)
    masked = random_tokens(rows, 2, 12, vocab=2, seed=1).bool()
    return masked_loss(model, tokens, Masking(masked, masked.double()), 4).total


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of torch's own tracing
@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "norm": "layer", "mlp": "gelu"}], ids=["plain", "other"])
def test_inductor_lowers_a_layer_without_a_break(options: dict[str, Any]) -> None:
    """As it is trained on a GPU, under autocast: three parts, each at most twice, since rows come in other numbers."""
    from torch._dynamo.utils import counters

    model = toy_model(dtype=torch.float32, prediction="next_token", **options).train()
    found = {}
    for compiled in (False, True):
        if compiled:
            torch._dynamo.reset()
            counters.clear()
            model.layers[0].compile_parts()
        for rows in (3, 5, 6):
            model.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(model, rows)
            loss.backward()
            gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            found[compiled, rows] = gradient
    assert not counters["graph_break"]
    assert 3 <= counters["stats"]["unique_graphs"] <= 6
    for rows in (3, 5, 6):
        whole = found[False, rows].norm()
        assert whole > 0.1 and (found[True, rows] - found[False, rows]).norm() < 0.03 * whole
