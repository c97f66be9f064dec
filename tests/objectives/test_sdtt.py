"""SDTT: what the teacher's steps write and predict, enumerated from every state of three tokens of three ids."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toy import latent_model, random_tokens, toy_model

from hybrid import rng
from hybrid.data.batches import Batch
from hybrid.model import Transformer
from hybrid.model.two_stream import two_stream_hidden
from hybrid.objectives import build_objective, teacher
from hybrid.objectives.build import ObjectiveConfig
from hybrid.objectives.divergences import DIVERGENCES
from hybrid.objectives.noise import NoiseKeys, latent_noise
from hybrid.objectives.teacher import TeacherCanvas, teacher_targets

V = L = 3
MASK = V
Canvas = tuple[int, ...]
STATES = [state for state in itertools.product(range(V + 1), repeat=L) if MASK in state]


def conditionals(model: Transformer) -> dict[Canvas, Tensor]:
    """p(. | canvas) of every canvas with a MASK, (L, V) each, by the training pass on that text."""
    canvases = torch.tensor(STATES)
    masked = (canvases == MASK)[:, None]
    tokens = canvases.masked_fill(masked[:, 0], 0)
    table = torch.full((len(STATES), L, V), torch.nan, dtype=torch.float64)
    table[masked[:, 0]] = model.head(two_stream_hidden(model, tokens, masked, L)).softmax(-1).detach()
    return dict(zip(STATES, table, strict=True))


def step(law: dict[Canvas, float], predict: dict[Canvas, Tensor], count: int) -> dict[Canvas, float]:
    """The law of canvases after a step that reveals `count` random positions, each by itself."""
    after: dict[Canvas, float] = defaultdict(float)
    for canvas, mass in law.items():
        masked = [place for place, token in enumerate(canvas) if token == MASK]
        choices = list(itertools.combinations(masked, min(count, len(masked))))
        for chosen in choices:
            for drawn in itertools.product(range(V), repeat=len(chosen)):
                new, share = list(canvas), mass / len(choices)
                for place, token in zip(chosen, drawn, strict=True):
                    new[place], share = token, share * float(predict[canvas][place, token])
                after[tuple(new)] += share
    return after


def expected_targets(
    start: Canvas, predict: dict[Canvas, Tensor], steps: int, per_step: int
) -> tuple[dict[Canvas, float], Tensor, Tensor]:
    """The law of canvases after all steps, and two (L, V) that it implies.

    P(token v stands at l), for those that are revealed; the mean prediction for those that are not, times their share.
    """
    laws = [{start: 1.0}]
    for _ in range(steps):
        laws.append(step(laws[-1], predict, per_step))
    revealed, still = torch.zeros(2, L, V, dtype=torch.float64)
    for canvas, mass in laws[-1].items():
        for place, token in enumerate(canvas):
            if start[place] == MASK and token != MASK:
                revealed[place, token] += mass
    for canvas, mass in laws[-2].items():
        masked = [place for place, token in enumerate(canvas) if token == MASK]
        left = max(len(masked) - per_step, 0) / max(len(masked), 1)  # the share that this last step does not reveal
        for place in masked:
            still[place] += mass * left * predict[canvas][place]
    return laws[-1], revealed, still


def every_way(per_step: int, predict: dict[Canvas, Tensor]) -> list[tuple[int, Canvas, Canvas, float]]:
    """Every state, order of its masked tokens (a rank each) and text to write, with the probability of these two."""
    ways = []
    for number, state in enumerate(STATES):
        masked = [place for place, token in enumerate(state) if token == MASK]
        for order in itertools.permutations(masked):
            for drawn in itertools.product(range(V), repeat=len(masked)):
                canvas, text, mass = list(state), dict(zip(order, drawn, strict=True)), 1 / math.factorial(len(masked))
                for first in range(0, len(order), per_step):
                    seen = tuple(canvas)
                    for place in order[first : first + per_step]:
                        canvas[place] = text[place]
                        mass *= float(predict[seen][place, text[place]])
                rank = tuple(order.index(place) if place in order else L for place in range(L))
                ways.append((number, rank, tuple(canvas), mass))
    return ways


@pytest.mark.parametrize(("steps", "per_step"), [(1, 1), (2, 1), (3, 1), (2, 2)])
def test_targets_are_those_of_the_teachers_steps(steps: int, per_step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From every state, summed over all that the teacher may do: the law of its steps, and what it says at last.

    Where a token is revealed the targets are the law of what stands there; where it is not, the last prediction.
    """
    model = toy_model(vocab=V, seed=2)
    predict = conditionals(model)
    *integers, masses = zip(*every_way(per_step, predict), strict=True)
    numbers, order, texts = (torch.tensor(column) for column in integers)
    forced = {rng.ORDER + rng.FURTHER: order}
    monkeypatch.setattr(teacher, "position_uniforms", lambda *keys: forced.get(keys[3], texts)[:, None] / 8)
    monkeypatch.setattr(rng, "categorical", lambda _, uniforms: (8 * uniforms).long())
    masked = (torch.tensor(STATES)[numbers] == MASK)[:, None]
    batch = Batch(texts.masked_fill(masked[:, 0], 0), torch.ones_like(texts, dtype=torch.bool))
    start = TeacherCanvas.of(model, batch, masked, NoiseKeys.of_rows(0, torch.arange(len(texts))), L)
    targets = torch.zeros(len(texts), L, V, dtype=torch.float64)
    targets[masked[:, 0]] = teacher_targets(start, steps, per_step).exp()
    targets *= torch.tensor(masses, dtype=torch.float64)[:, None, None]
    is_still = (masked[:, 0] & (order >= steps * per_step))[..., None]
    got = torch.zeros(2, len(STATES), L, V, dtype=torch.float64)
    for total, kind in zip(got, (~is_still, is_still), strict=True):
        total.index_add_(0, numbers, targets * kind)
    for number, state in enumerate(STATES):
        _, revealed, still = expected_targets(state, predict, steps, per_step)
        torch.testing.assert_close(got[0][number], revealed)
        torch.testing.assert_close(got[1][number], still)


def test_the_teacher_writes_by_its_law():
    """Canvases after two steps from MASK alone, within 4.5 standard errors (false alarm 3e-4 for all 27 together)."""
    model, n = toy_model(vocab=V, seed=2), 4000
    law, _, _ = expected_targets((MASK,) * L, conditionals(model), 2, 1)
    everything = torch.ones(n, 1, L, dtype=torch.bool)
    batch = Batch(torch.zeros(n, L, dtype=torch.long), everything[:, 0])
    canvas = TeacherCanvas.of(model, batch, everything, NoiseKeys.of_rows(1, torch.arange(n)), L)
    for _ in range(2):
        canvas = canvas.reveal(canvas.predict(), 1)
    counts = Counter(map(tuple, canvas.ids(MASK)[:, 0].tolist()))
    assert counts.keys() <= law.keys()
    for written, mass in law.items():
        assert abs(counts[written] / n - mass) <= 4.5 * (mass * (1 - mass) / n) ** 0.5 + 2 / n, written


def test_a_step_of_the_grid_is_a_number_of_tokens():
    """Blocks of 4 and 3 go through n, n - 2, n - 4 masked tokens, whatever n is, and none twice."""
    masked = torch.ones(5, 2, 7, dtype=torch.bool)
    masked[0, 1, 1:3] = masked[1, 0, :3] = False
    batch = Batch(random_tokens(5, 7), torch.ones(5, 7, dtype=torch.bool))
    canvas = TeacherCanvas.of(toy_model(), batch, masked, NoiseKeys.of_rows(0, torch.arange(5)), 4)

    def counts(flags: Tensor) -> Tensor:
        return torch.stack([flags[..., :4].sum(-1), flags[..., 4:].sum(-1)])

    for count in (2, 4):
        canvas = canvas.reveal(canvas.predict(), 2)
        assert torch.equal(counts(canvas.masked), (counts(masked) - count).clamp(min=0))
    kept = canvas.tokens[~masked]
    assert torch.equal(kept, batch.tokens[:, None].expand(masked.shape)[~masked]), "what was known stays"


def test_blocks_are_written_given_the_text_before_them():
    """Targets of the second block do not depend on what the teacher writes into the first."""
    model, tokens = toy_model(seed=3), random_tokens(2, 8)
    masked = torch.ones(2, 1, 8, dtype=torch.bool)
    noise = NoiseKeys.of_rows(0, torch.arange(2))

    def targets_of(masked: Tensor) -> Tensor:
        start = TeacherCanvas.of(model, Batch(tokens, masked[:, 0]), masked, noise, 4)
        return teacher_targets(start, 3, 1).view(2, -1, 7)

    alone = masked.clone()
    alone[..., :4] = False
    torch.testing.assert_close(targets_of(masked)[:, 4:], targets_of(alone))


def test_a_teacher_with_a_latent_draws_it_at_each_step():
    """Otherwise its predictions would not be those with which it writes."""
    model, tokens = toy_model(latent=2), random_tokens(2, 4)[:1].repeat(2, 1)
    with torch.no_grad():
        assert model.latent_weight is not None
        model.latent_weight.normal_()
    everything = torch.ones(2, 1, 4, dtype=torch.bool)
    start = TeacherCanvas.of(
        model, Batch(tokens, everything[:, 0]), everything, NoiseKeys.of_rows(0, torch.arange(2)), 4
    )
    first, *others = (canvas.predict() for canvas in (start, start, replace(start, done=1)))
    assert torch.equal(first, others[0]) and not torch.allclose(first, others[1])
    assert not torch.allclose(first[:4], first[4:]), "rows have their own"
    z = latent_noise(start.noise, model.config, 4, 4, 1)
    as_student = model.head(two_stream_hidden(model, tokens, everything, 4, latent=z)).log_softmax(-1)
    assert not torch.allclose(first, as_student), "nor are they those of a student"


def test_the_teacher_draws_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it predicts in float32, too: float32 draws are biased where the vocabulary is large."""
    seen = []
    draw = rng.categorical
    monkeypatch.setattr(rng, "categorical", lambda p, u: (seen.append((p.dtype, u.dtype)), draw(p, u))[1])
    everything = torch.ones(2, 1, 4, dtype=torch.bool)
    batch = Batch(random_tokens(2, 4), everything[:, 0])
    model = toy_model(dtype=torch.float32)
    start = TeacherCanvas.of(model, batch, everything, NoiseKeys.of_rows(0, torch.arange(2)), 4)
    teacher_targets(start, 3, 1)
    assert seen == [(torch.float64, torch.float64)] * 2


@pytest.mark.parametrize("name", ["sdtt", "di4c"])
def test_the_student_is_banned_what_the_teacher_bans(name: str) -> None:
    """An id that the teacher never writes is none of the student's classes: its row of the head gets no gradient."""
    theirs, model = toy_model(seed=1, mask_token_id=3, ban_mask=True), latent_model(mask_token_id=3, ban_mask=False)
    assert (theirs.banned_token_id, model.banned_token_id) == (3, None)
    tokens = random_tokens(3, 10, vocab=3)
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    objective = build_objective(ObjectiveConfig(name=name, teacher="a run"), theirs)
    total = objective.loss(model, batch, NoiseKeys(0, 2, torch.arange(3), 0, 3), 4).total
    assert total.isfinite()
    assert model.head_weight is not None
    (gradient,) = torch.autograd.grad(total, [model.head_weight])
    assert not gradient[3].any() and gradient[2].any()


@pytest.mark.parametrize("divergence", sorted(DIVERGENCES))
def test_the_loss_is_the_weighted_divergence(divergence: str) -> None:
    theirs, model, tokens = toy_model(seed=1), toy_model(), random_tokens(3, 10)
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    noise = NoiseKeys(0, 2, torch.arange(3), 0, 3)
    name = {"name": "sdtt", "divergence": divergence, "teacher_steps": 3, "per_step": 2}
    objective = build_objective(ObjectiveConfig(name=name, draws=2, teacher="a run"), theirs)
    masking = objective.draw(batch, noise, 4)
    start = TeacherCanvas.of(theirs, batch, masking.masked, noise, 4)
    ours = model.head(two_stream_hidden(model, tokens, masking.masked, 4)).log_softmax(-1)
    each = DIVERGENCES[divergence](teacher_targets(start, 3, 2), ours)
    expected = (each * masking.weight[masking.masked]).sum() / 2
    torch.testing.assert_close(objective.loss(model, batch, noise, 4).total, expected)


@pytest.mark.parametrize("option", ["teacher_steps", "per_step"])
def test_what_cannot_be_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"objective.name.{option}: 0 is too small; it must be at least 1"):
        build_objective(ObjectiveConfig(name={"name": "sdtt", option: 0}, teacher="a run"), toy_model())
    with pytest.raises(ValueError, match=f"objective.name.{option}: {10**21} is too large; it must be at most"):
        build_objective(ObjectiveConfig(name={"name": "sdtt", option: 10**21}, teacher="a run"), toy_model())
