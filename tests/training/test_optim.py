"""Schedules, optimizers and averages."""

import math
from itertools import pairwise

import pytest
import torch
from toy import random_tokens, toy_model

from hybrid.model.masks import TwoStream
from hybrid.training import muon
from hybrid.training.muon import Muon
from hybrid.training.optim import EMA, OptimConfig, Optimizer, lr_factor


def test_schedules_rise_hold_and_fall():
    cosine = [lr_factor(s, 100, OptimConfig(warmup_steps=10)) for s in range(100)]
    assert cosine[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert cosine[10] == 1 and cosine[99] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(cosine[10:]))
    wsd = [lr_factor(s, 100, OptimConfig(warmup_steps=10, schedule="wsd", final_lr_ratio=0.0)) for s in range(100)]
    assert set(wsd[10:80]) == {1.0}
    assert 0 < wsd[99] < 0.06 and all(a > b for a, b in pairwise(wsd[80:]))
    constant = [lr_factor(s, 100, OptimConfig(warmup_steps=0, schedule="constant")) for s in range(100)]
    assert set(constant) == {1.0}
    assert lr_factor(0, 1, OptimConfig(warmup_steps=0)) == 1, "one step is no division by zero"


def test_schedules_by_hand():
    """Of 14 steps 4 warm up; the cosine falls over the other ten, from step 4 to step 13; wsd over the last 7 of 14."""
    cosine = OptimConfig(warmup_steps=4, final_lr_ratio=0.2)
    assert [lr_factor(s, 14, cosine) for s in (0, 3, 4, 7, 13)] == pytest.approx([0.25, 1, 1, 0.2 + 0.8 * 0.75, 0.2])
    wsd = OptimConfig(warmup_steps=4, schedule="wsd", decay_fraction=0.5, final_lr_ratio=0.2)
    expected = [1.0, *(0.2 + 0.8 * left / 8 for left in range(7, 0, -1))]
    assert [lr_factor(s, 14, wsd) for s in range(6, 14)] == pytest.approx(expected)
    late = OptimConfig(warmup_steps=12, schedule="wsd", decay_fraction=0.5, final_lr_ratio=0.0)
    assert [lr_factor(s, 14, late) for s in (11, 12, 13)] == pytest.approx([1.0, 2 / 3, 1 / 3])


def test_optimizers_have_the_decays_of_the_configuration():
    config = OptimConfig(name="muon", beta1=0.8, beta2=0.7, momentum=0.6, weight_decay=0.3)
    parts = Optimizer(toy_model(), config).parts
    assert {group["betas"] for group in parts["adamw"].param_groups} == {(0.8, 0.7)}
    assert [(g["momentum"], g["weight_decay"]) for g in parts["muon"].param_groups] == [(0.6, 0.3)]
    assert {group["weight_decay"] for group in parts["adamw"].param_groups} == {0.0}


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest():
    model = toy_model()
    parts = Optimizer(model, OptimConfig(name="muon")).parts
    names = {p: n for n, p in model.named_parameters()}
    muon = {names[p] for g in parts["muon"].param_groups for p in g["params"]}
    adamw = {names[p] for g in parts["adamw"].param_groups for p in g["params"]}
    assert muon | adamw == set(names.values()) and not muon & adamw
    assert "layers.0.wq.weight" in muon and "layers.1.w_down.weight" in muon
    assert {"embedding.weight", "head_weight", "final_norm.weight", "layers.0.q_norm.weight"} <= adamw


def test_only_matrices_of_the_blocks_decay():
    model = toy_model()
    optimizer = Optimizer(model, OptimConfig(weight_decay=0.5))
    names = {p: n for n, p in model.named_parameters()}
    decayed = {names[p] for g in optimizer.parts["adamw"].param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {n for n in names.values() if n.startswith("layers.") and not n.endswith("norm.weight")}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_rates_follow_the_factor(name):
    optimizer = Optimizer(toy_model(), OptimConfig(name=name, lr=0.3, muon_lr=0.2))
    optimizer.set_rate(0.5)
    rates = {n: {g["lr"] for g in part.param_groups} for n, part in optimizer.parts.items()}
    assert rates["adamw"] == {0.15}
    assert rates.get("muon", {0.1}) == {0.1}


def test_another_optimizers_state_is_refused():
    tensors, meta = Optimizer(toy_model(), OptimConfig(name="muon")).state()
    with pytest.raises(ValueError, match=r"optim.name: the checkpoint was trained with adamw/muon, not 'adamw'"):
        Optimizer(toy_model(), OptimConfig(name="adamw")).restore(tensors, meta)


def test_ema_follows_and_gives_the_weights_back():
    model = toy_model()
    ema = EMA(model, 0.9)
    start = model.final_norm.weight.detach().clone()
    with torch.no_grad():
        model.final_norm.weight.add_(1)
    for step in range(3):
        ema.update(step, torch.tensor(0.0))  # decays 0.1, 2/11, 0.25
    remaining = 0.1 * (2 / 11) * 0.25
    torch.testing.assert_close(ema.shadow["final_norm.weight"], start + 1 - remaining)
    average = ema.shadow["final_norm.weight"].clone()
    ema.update(3, skip=torch.tensor(1.0))
    assert torch.equal(ema.shadow["final_norm.weight"], average)
    with ema.applied():
        torch.testing.assert_close(model.final_norm.weight.detach(), start + 1 - remaining)
    torch.testing.assert_close(model.final_norm.weight.detach(), start + 1)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_that_is_skipped_leaves_no_trace(name):
    """Of the steps of two optimizers, those that one of them skips might as well not have been there."""

    def backward(model, step, factor=1.0):
        tokens = random_tokens(2, 8, seed=step)
        pattern = TwoStream.of(8, 8)
        (factor * model.head(model(tokens, pattern)).square().mean()).backward()

    def trained(skipped):
        model = toy_model(dtype=torch.float32)
        optimizer = Optimizer(model, OptimConfig(name=name, lr=0.01))
        optimizer.set_rate(1.0)
        for step in range(3):
            for bad in (math.nan, math.inf) if step in skipped else ():
                backward(model, step, bad)
                optimizer.step(torch.tensor(1.0))
                optimizer.zero_grad()
            backward(model, step)
            optimizer.step(torch.tensor(0.0))
            optimizer.zero_grad()
        return dict(model.named_parameters()) | optimizer.state()[0]

    expected = trained(skipped=())
    for skipped in ((0,), (1, 2)):
        actual = trained(skipped)
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("numbers", [1, 2**25], ids=["one at a time", "all of a shape"])
def test_muon_over_matrices_of_one_shape_is_torchs(numbers, monkeypatch):
    """Wide, tall and square ones, one without a gradient; weights and momenta, to the rounding of bfloat16."""

    def trained(kind):
        generator = torch.Generator().manual_seed(0)
        shapes = [(24, 16), (16, 24), (24, 16), (16, 16), (16, 24), (16, 16), (24, 16)]
        weights = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
        optimizer = kind(weights, lr=0.1, momentum=0.9, weight_decay=0.2)
        for p in weights:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        for _ in range(3):
            for p in weights[:-1]:
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
        return [t.detach() for p in weights for t in (p, optimizer.state[p]["momentum_buffer"])]

    monkeypatch.setattr(muon, "NUMBERS", {"cpu": numbers})
    for got, expected in zip(trained(Muon), trained(torch.optim.Muon), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-3)


def test_muon_multiplies_all_matrices_of_a_shape_at_once(monkeypatch):
    products, bmm = [], torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: products.append(tuple(a.shape)) or bmm(a, b))
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in [(4, 8)] * 5 + [(8, 4)] * 3]
    optimizer = Muon(weights, lr=0.1)
    for p in weights:
        p.grad, optimizer.state[p]["momentum_buffer"] = torch.randn_like(p), torch.zeros_like(p)
    optimizer.step()
    assert sorted(set(products)) == [(3, 4, 8), (5, 4, 8)] and len(products) == 2 * 5
