"""One optimizer step: its gradient does not depend on how a batch is split, over forwards or over ranks."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from toy import nll_of, random_tokens, toy_model

from hybrid import rng
from hybrid.data.batches import PackedTokens, batch_rows
from hybrid.data.packing import Counts
from hybrid.distributed import Ranks
from hybrid.model.attention import BACKENDS
from hybrid.objectives import Objective
from hybrid.objectives.cross_entropy import MaskedCrossEntropy
from hybrid.objectives.estimators import Count, Masking, Time
from hybrid.objectives.noise import NoiseKeys
from hybrid.objectives.weightings import Cart
from hybrid.training.config import TrainerConfig
from hybrid.training.optim import EMA, OptimConfig, Optimizer
from hybrid.training.step import Stepper

SEQ_LEN, ROWS = 12, 8


def packed(document_mask: bool = False) -> PackedTokens:
    """Rows in which very different numbers of tokens count."""
    tokens = random_tokens(40, SEQ_LEN, seed=1).numpy().astype(np.uint16)
    share = np.linspace(0.05, 1, 40)[:, None]
    is_target = (np.random.default_rng(0).random(tokens.shape) < share).astype(np.uint8)
    n = int(is_target.sum())
    counts = Counts(1, tokens.size, tokens.size, n, n)
    return PackedTokens(tokens.ravel(), is_target.ravel(), counts, SEQ_LEN, 6, document_mask)


def stepper(split: PackedTokens, draws: int = 2, estimator=None, **options) -> Stepper:
    objective = options.pop("objective", MaskedCrossEntropy(estimator or Count(), draws=draws))
    model, optim = options.pop("model", None) or toy_model(), options.pop("optim", OptimConfig())
    ema = EMA(model, 0.9) if options.pop("ema", False) else None
    trainer = TrainerConfig(batch_tokens=ROWS * SEQ_LEN, micro_batch_tokens=options.pop("micro", None))
    return Stepper(
        model, Optimizer(model, optim), ema, split, objective, [4, 3], optim, trainer, seed=0,
        precision=contextlib.nullcontext, **options,
    )  # fmt: skip


def gradient(one: Stepper, step: int = 3) -> tuple[Tensor, float]:
    """The gradient as one vector, and the loss."""
    one.optimizer.zero_grad()
    loss = float(one.accumulate(step).losses[0])
    return torch.cat([p.grad.flatten() for p in one.model.parameters()]), loss


@pytest.mark.parametrize("estimator", [Count(), Time()])
def test_accumulation_gives_the_same_gradient(estimator) -> None:
    split = packed()
    expected, nelbo = gradient(stepper(split, estimator=estimator))
    assert expected.norm() > 0.1
    for micro_rows in (1, 2, 4):
        actual, accumulated = gradient(stepper(split, estimator=estimator, micro=micro_rows * SEQ_LEN))
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
        assert accumulated == pytest.approx(nelbo, rel=1e-12)


@pytest.mark.parametrize("micro", [None, SEQ_LEN])
def test_the_gradients_of_two_ranks_sum_to_that_of_one_process(micro: int | None) -> None:
    split = packed()
    expected, nelbo = gradient(stepper(split))
    parts = [gradient(stepper(split, ranks=Ranks(rank, 2), micro=micro)) for rank in (0, 1)]
    torch.testing.assert_close(parts[0][0] + parts[1][0], expected, rtol=1e-12, atol=1e-12)
    assert parts[0][1] + parts[1][1] == pytest.approx(nelbo, rel=1e-12)
    assert not torch.allclose(parts[0][0], parts[1][0])


@dataclasses.dataclass
class Spy:
    """Remembers the noise it hands out."""

    masks: list[Tensor] = dataclasses.field(default_factory=list)

    def draw(self, keys: NoiseKeys, is_target: Tensor, block_size: int, draws: int, stratified: bool) -> Masking:
        masking = Count().draw(keys, torch.ones_like(is_target), block_size, draws, stratified)
        self.masks.append(masking.masked)
        return masking


def test_ranks_see_other_data_and_other_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    split, read = packed(), []
    rows = PackedTokens.rows
    monkeypatch.setattr(PackedTokens, "rows", lambda self, index: read.append(list(index)) or rows(self, index))
    # Rank 0, rank 1, and one process; each counts the targets of the global batch first, then reads its share.
    noise = []
    for rank, world in ((0, 2), (1, 2), (0, 1)):
        spy = Spy()
        stepper(split, ranks=Ranks(rank, world), estimator=spy).accumulate(3)
        noise.append(torch.cat(spy.masks))
    batch, first, _, second, _, whole = read
    assert sorted(first + second) == sorted(batch) == sorted(whole) and not set(first) & set(second)
    assert torch.equal(torch.cat(noise[:2]), noise[2])
    assert not torch.equal(noise[0], noise[1])
    assert len({tuple(row.flatten().tolist()) for row in noise[2]}) == ROWS  # nor do two rows share theirs


@pytest.mark.parametrize("seed", [0, 5])
def test_data_noise_and_block_sizes_are_those_of_the_seed(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    split, read, keyed = packed(), [], []
    rows = PackedTokens.rows
    monkeypatch.setattr(PackedTokens, "rows", lambda self, index: read.append(list(index)) or rows(self, index))

    class Keyed:
        def draw(self, keys: NoiseKeys, is_target: Tensor, block_size: int, draws: int, stratified: bool) -> Masking:
            keyed.append((keys.seed, keys.step, keys.row.tolist(), keys.first, keys.total))
            return Count().draw(keys, is_target, block_size, draws, stratified)

    one = dataclasses.replace(stepper(split, estimator=Keyed(), micro=4 * SEQ_LEN), seed=seed)
    one.accumulate(7)
    batch = list(batch_rows(40, ROWS, seed, 7))
    assert read == [batch, batch[:4], batch[4:]]  # the targets of the batch are counted first
    assert keyed == [(seed, 8, [0, 1, 2, 3], 0, ROWS), (seed, 8, [4, 5, 6, 7], 4, ROWS)]
    expected = [[4, 3][int(2 * float(rng.uniform(seed, rng.DECIDE, step)))] for step in range(40)]
    assert [one.block_size_of(step) for step in range(40)] == expected
    assert batch != list(batch_rows(40, ROWS, seed + 1, 7))


@pytest.mark.parametrize("micro", [None, SEQ_LEN])
def test_losses_of_a_step_are_nats_per_target_token_of_the_batch(micro: int | None) -> None:
    """That of block size 1, where nothing is random, against `Exact`; the autoregressive part is weighted."""
    split = packed()
    model = toy_model("causal", "next_token")
    index = batch_rows(40, ROWS, 0, 3)
    batch = split.rows(index)
    with torch.no_grad():
        exact = float(nll_of(model, batch.tokens, 1, "exact", is_target=batch.is_target).nll.sum())
    exact /= int(batch.is_target.sum())
    assert int(batch.is_target.sum()) < 0.9 * batch.tokens.numel()
    one = stepper(split, model=model, objective=MaskedCrossEntropy(Count(), ar_weight=0.25), micro=micro)
    one.block_sizes = [1]
    assert float(one.accumulate(3).losses[0]) == pytest.approx(exact)
    one.block_sizes = [4]
    plain = stepper(split, model=toy_model("causal", "next_token"), objective=MaskedCrossEntropy(Count()), micro=micro)
    plain.block_sizes = [4]
    alone = stepper(split, model=toy_model("causal", "next_token"), objective=MaskedCrossEntropy(Count()), micro=micro)
    alone.block_sizes = [1]
    whole, elbo, left_to_right = (gradient(one)[0], gradient(plain)[0], gradient(alone)[0])
    assert one.accumulate(3).losses[1] == pytest.approx(exact)
    torch.testing.assert_close(whole, elbo + 0.25 * left_to_right, rtol=1e-9, atol=1e-12)


def test_a_step_has_its_own_rate_and_its_own_decay_of_the_average(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rates and decays are those of steps 0, 1, 2: warm-up over four steps, and decays 0.1, 2/11, 0.25."""
    optim = OptimConfig(lr=0.5, warmup_steps=4)
    one = stepper(packed(), optim=optim, ema=True)
    average = one.model.final_norm.weight.detach().clone()
    for number, (rate, decay) in enumerate(((0.125, 0.1), (0.25, 2 / 11), (0.375, 0.25))):
        result = one(number)
        assert result.rates == {"lr": pytest.approx(rate)}
        average = decay * average + (1 - decay) * one.model.final_norm.weight.detach()
        torch.testing.assert_close(one.ema.shadow["final_norm.weight"], average)


def test_every_step_has_its_own_noise_and_data() -> None:
    split, spy = packed(), Spy()
    one = stepper(split, estimator=spy)
    one.block_sizes = [4]
    for step in range(3):
        one.accumulate(step)
    assert not torch.equal(spy.masks[0], spy.masks[1]) and not torch.equal(spy.masks[1], spy.masks[2])


@pytest.mark.parametrize("grad_clip", [0.0, 0.05, 1e6])
def test_the_gradient_is_clipped_to_its_norm_and_0_does_not_clip(grad_clip: float) -> None:
    """What the optimizer is handed, and the norm before that, which is logged."""
    whole, _ = gradient(stepper(packed()))
    norm = float(whole.norm())
    assert norm > 0.1
    one = stepper(packed(), optim=OptimConfig(grad_clip=grad_clip))
    handed: list[Tensor] = []
    one.optimizer.step = lambda skip: handed.append(torch.cat([p.grad.flatten() for p in one.model.parameters()]))
    result = one(3)
    expected = whole * (grad_clip / norm if 0 < grad_clip < norm else 1.0)
    torch.testing.assert_close(handed[0], expected, rtol=1e-4, atol=0)
    assert result.grad_norm == pytest.approx(norm)


def test_of_a_list_of_block_sizes_each_is_drawn_as_often() -> None:
    one = stepper(packed())
    drawn = [one.block_size_of(step) for step in range(2000)]
    # Binomial(2000, 1/2): six standard deviations, a false alarm in 5e8.
    assert abs(drawn.count(4) - 1000) < 6 * math.sqrt(500) and set(drawn) == {3, 4}
    assert drawn[:50] == [one.block_size_of(step) for step in range(50)]


# ---------------------------------------------------------------------------------------------------------------------
# The host does not wait for the device


@pytest.fixture
def meta_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's fused AdamW runs on the meta device if it does not check where it is; autocast does not know of it."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    adam = importlib.import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *args, **kwargs: None)


OBJECTIVES = {
    "counts": MaskedCrossEntropy(Count(), draws=2),
    "pairs": MaskedCrossEntropy(Count(complementary=True), draws=2),
    "times": MaskedCrossEntropy(Time(), draws=2),
    "weighting": MaskedCrossEntropy(Count(), Cart()),
    "autoregressive": MaskedCrossEntropy(Count(), ar_weight=0.5),
}


@pytest.mark.thin(6)
@pytest.mark.usefixtures("meta_trains")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("prediction", ["in_place", "next_token"])
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_step_does_not_wait_for_the_device(objective: Objective, prediction: str, optimizer: str) -> None:
    """On the meta device there is nothing to wait for: whoever asks what came out gets an error."""
    model = toy_model("causal", prediction, dtype=torch.float32).to("meta")
    optim = OptimConfig(name=optimizer)
    one = stepper(packed(True), objective=objective, model=model, optim=optim, ema=True, micro=4 * SEQ_LEN)
    result = [one(step) for step in range(2)][-1]
    assert result.numbers.is_meta and result.numbers.shape == (len(result.names) + 1,)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        _ = result.loss


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("attention", ["sdpa", "flex"])
def test_a_step_does_not_wait_for_the_gpu(attention: str, optimizer: str) -> None:
    device = torch.device("cuda")
    model = toy_model("causal", dtype=torch.float32, dim=64).to(device)
    model.attend = BACKENDS[attention](device, True)
    objective, optim = OBJECTIVES["autoregressive"], OptimConfig(name=optimizer)
    one = stepper(packed(), objective=objective, model=model, optim=optim, ema=True, micro=4 * SEQ_LEN)
    one.block_sizes = [4]
    before = [one(step) for step in range(2)]  # which compile and lay out what is kept
    torch.cuda.set_sync_debug_mode("error")
    try:
        after = [one(step) for step in range(2, 5)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(result.is_finite for result in before + after)
