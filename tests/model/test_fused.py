"""Weights for inference: made once, made current when the weights have changed, and seen by nobody else."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import threading
import weakref

import pytest
import torch
from decoding_toy import engine
from toy import random_tokens, toy_model

from hybrid.checkpoints.module_state import module_tensors
from hybrid.model import fused
from hybrid.model.attention import Eager
from hybrid.model.fused import for_inference, fuse, is_fused
from hybrid.model.two_stream import two_stream_hidden
from hybrid.training.optim import EMA, OptimConfig, Optimizer


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry for every layer that is fused."""
    layers: list[int] = []
    original = fused.FusedLayer.__init__

    def spy(self, layer, dtype):
        layers.append(1)
        original(self, layer, dtype)

    monkeypatch.setattr(fused.FusedLayer, "__init__", spy)
    return layers


def logits(model) -> torch.Tensor:
    masked = torch.ones(1, 1, 8, dtype=torch.bool)
    with torch.no_grad():
        return model.head(two_stream_hidden(model, random_tokens(1, 8), masked, 4))


def test_weights_are_fused_once_for_several_generations(made) -> None:
    model = toy_model()
    for seed in range(3):
        engine(model, 4, seed=seed).generate([[1]], 8)
    assert len(made) == len(model.layers)


def change_by_optimizer(model, name: str) -> None:
    optimizer = Optimizer(model, OptimConfig(name=name))
    model.head(
        two_stream_hidden(model, random_tokens(2, 8), torch.ones(2, 1, 8, dtype=torch.bool), 4)
    ).square().sum().backward()
    optimizer.step(skip=torch.zeros(()))


CHANGES = {
    "adamw": lambda model: change_by_optimizer(model, "adamw"),
    "muon": lambda model: change_by_optimizer(model, "muon"),
    "copied into": lambda model: model.load_state_dict({k: v + 0.1 for k, v in model.state_dict().items()}),
    "one norm alone": lambda model: model.layers[1].q_norm.weight.detach().mul_(3),
    "another tensor": lambda model: setattr(
        model.layers[0].wo.weight, "data", torch.ones_like(model.layers[0].wo.weight)
    ),
    "the embedding": lambda model: setattr(model.embedding.weight, "data", model.embedding.weight.detach() * 2),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_follows_the_weights(change, tied) -> None:
    """However they are changed, also behind autograd's back."""
    model = toy_model(dtype=torch.float32, tied_embeddings=tied)
    copy = for_inference(model, torch.float32)
    at = [t.data_ptr() for layer in copy.layers for t in layer.tensors()]
    before = logits(copy)
    CHANGES[change](model)
    after = for_inference(model, torch.float32)
    assert after is copy and [t.data_ptr() for layer in copy.layers for t in layer.tensors()] == at, (
        "in place, at the same addresses"
    )
    torch.testing.assert_close(logits(copy), logits(model), rtol=1e-4, atol=1e-4)
    assert (logits(copy) - before).abs().max() > 1e-3


def test_averaged_weights_are_followed_and_left_again(made) -> None:
    model = toy_model(dtype=torch.float32)
    ema = EMA(model, 0.9)
    change_by_optimizer(model, "adamw")
    with ema.applied():
        inside = logits(for_inference(model, torch.float32))
        torch.testing.assert_close(inside, logits(model), rtol=1e-4, atol=1e-4)
    outside = logits(for_inference(model, torch.float32))
    torch.testing.assert_close(outside, logits(model), rtol=1e-4, atol=1e-4)
    assert (inside - outside).abs().max() > 1e-4
    assert len(made) == 2 * len(model.layers)


def test_a_copy_is_no_part_of_its_model_and_dies_with_it() -> None:
    model = toy_model()
    names = list(module_tensors(model))
    copy = weakref.ref(for_inference(model, torch.float64))
    assert list(module_tensors(model)) == names and not is_fused(model)
    assert all(p.requires_grad for p in model.parameters())
    del model
    gc.collect()
    assert copy() is None


def test_fusing_in_place_frees_each_layer_before_the_next(monkeypatch) -> None:
    model = toy_model(n_layers=3)
    weights = [weakref.ref(layer.wq.weight) for layer in model.layers]
    alive = []
    original = fused.FusedLayer.__init__

    def spy(self, layer, dtype):
        alive.append(sum(w() is not None for w in weights))
        original(self, layer, dtype)

    monkeypatch.setattr(fused.FusedLayer, "__init__", spy)
    fuse(model)
    assert alive == [3, 2, 1] and weights[-1]() is None


def test_bf16_multiplies_in_bf16_and_keeps_the_residual_stream() -> None:
    model = toy_model(dtype=torch.float32)
    expected = logits(model)
    fuse(model, torch.bfloat16)
    assert model.dtype == torch.bfloat16 and model.embedding.weight.dtype == torch.float32
    got = logits(model)
    assert got.dtype == torch.bfloat16
    assert (got.float() - expected).abs().max() < 0.05 * expected.abs().max()


def texts(model) -> list[list[int]]:
    return engine(model, 4).generate([[], [1, 5, 3]], 6).tokens


def test_several_threads_may_generate_first() -> None:
    expected, found, interval = texts(toy_model(n_layers=3)), [], sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            model = toy_model(n_layers=3)
            model.is_expendable = True
            threads = [threading.Thread(target=lambda model=model: found.append(texts(model))) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(found) == 60 and all(one == expected for one in found)


@pytest.mark.parametrize("expendable", [False, True])
def test_copies_of_a_model_are_its_equals(expendable) -> None:
    """Before it has generated and after; a copy for inference is a model to generate with, too."""
    model = toy_model()
    model.is_expendable = expendable
    ways = {
        "deepcopy": copy.deepcopy,
        "pickle": lambda model: pickle.loads(pickle.dumps(model)),
        "for inference": lambda model: for_inference(model, model.dtype),
    }
    early = {name: make(model) for name, make in ways.items() if name != "for inference"}
    expected = texts(model)
    for other in [*early.values(), *(make(model) for make in ways.values())]:
        assert texts(other) == expected


def test_inference_mode_leaves_nothing_that_cannot_be_changed_outside_of_it() -> None:
    model = toy_model(dtype=torch.float32)
    with torch.inference_mode():
        texts(model)
        texts(toy_model())  # whose weights have no versions
    change_by_optimizer(model, "adamw")
    torch.testing.assert_close(logits(for_inference(model, torch.float32)), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_a_fused_model_does_not_train(norm) -> None:
    """What would move is its embedding alone."""
    model = toy_model(norm=norm, qk_norm=False)
    fuse(model)
    model.eval()
    with pytest.raises(ValueError, match=r"load it again and call train\(\) before"):
        model.train()


@pytest.mark.parametrize("tied", [False, True])
def test_a_copy_is_of_the_dtype_that_is_asked_for_and_attends_as_its_model(tied) -> None:
    model = toy_model(dtype=torch.float32, tied_embeddings=tied)
    for dtype in (torch.float32, torch.float32, torch.bfloat16, torch.float32):
        model.attend = Eager()
        copied = for_inference(model, dtype)
        assert copied.attend is model.attend
        assert copied.dtype == copied.head_matrix().dtype == logits(copied).dtype == dtype


@pytest.mark.parametrize("biases", [False, True])
def test_a_fused_model_can_be_converted(biases) -> None:
    """All that it has goes along."""
    model = toy_model(dtype=torch.float32, qkv_bias=biases, mlp_bias=biases, norm="layer" if biases else "rms")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    expected = logits(copy.deepcopy(model).double())
    fuse(model)
    model.double()
    got = logits(model)
    assert got.dtype == torch.float64 and all(t.dtype == got.dtype for layer in model.layers for t in layer.tensors())
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_model_fused_in_one_precision_does_not_run_in_another_without_a_word() -> None:
    model = toy_model(dtype=torch.float32)
    model.is_expendable = True
    bf16 = lambda: torch.autocast("cpu", dtype=torch.bfloat16)  # noqa: E731
    engine(model, 4, precision=bf16).generate([[1]], 4)
    with pytest.raises(
        ValueError, match=r"precision: the model multiplies in bfloat16 since its first use, not in flo"
    ):
        engine(model, 4).generate([[1]], 4)
    assert engine(model, 4, precision=bf16).generate([[1]], 4).nfe > 0
