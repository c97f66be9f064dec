"""The numerics experiment: the three samplers against their exact laws, and the command."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from toy import toy_model

from hybrid.experiments.reverse_process.ancestral_law import chi_square
from hybrid.experiments.reverse_process.joint_sampler import (
    FLOAT32,
    FLOAT64,
    HORIZON,
    Joint,
    Precision,
    argmax_reveal,
    decoupled,
    entropy_of_counts,
    entropy_of_law,
    joint_law,
    on_grid,
    simulate,
    truncated,
    untouched,
)
from hybrid.experiments.reverse_process.step_by_step import generate, predict

ALARM = 1e-6
"""Probability of a false alarm of each chi-square test; about 20 are made in this file, so 2e-5 in all."""

PROBS = np.array([0.9, 0.09, 0.009, 0.0009, 0.0001])
LOG_PROBS = torch.from_numpy(PROBS).log()[None]
TINY = 2.0**-14
"""An unmasking probability at which the two rarest tokens of PROBS, pi = 5.5e-8 and 6e-9, are below the grid of
float32, 6e-8."""


def fits(counts: torch.Tensor, draws: float, law: np.ndarray) -> float:
    """Chi-square probability of the counts of each token and, as one more outcome, of no token."""
    outcomes = torch.cat([counts, torch.tensor([round(draws) - int(counts.sum())])])
    return chi_square(outcomes, torch.from_numpy(np.append(law, 1 - law.sum())))


def plain(law: np.ndarray, q: float, draws: int, dtype: torch.dtype, bits: int) -> torch.Tensor:
    """Counts of the plain argmax over all tokens and MASK, its uniforms rounded down to `bits`."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(draws, len(law) + 1, generator=generator, dtype=torch.float64)
    uniform = (torch.floor(uniform * 2**bits) / 2**bits).to(dtype)
    log_probs = torch.from_numpy(law).log().to(dtype).expand(draws, -1)
    return torch.bincount(argmax_reveal(log_probs, q, uniform)[1], minlength=len(law))


# ---------------------------------------------------------------------------------------------------------------------
# Laws


def test_the_published_figures_are_those_of_the_truncated_gumbel() -> None:
    """Zheng et al. 2409.02908, section 5: rates 0.88 / 0.64 / 0.44, entropies 6.90 / 5.31 / 3.91, of 7.57."""
    probs = 1 / np.arange(1, 50_258)
    probs /= probs.sum()
    assert entropy_of_law(probs) == pytest.approx(7.57, abs=0.005)
    for q, rate, entropy in [(1 / 64, 0.88, 6.90), (1 / 1024, 0.64, 5.31), (1 / 10_000, 0.44, 3.91)]:
        law = joint_law(probs, q, truncated, points=200)
        assert law.sum() / q == pytest.approx(rate, abs=0.005)
        assert entropy_of_law(law) == pytest.approx(entropy, abs=0.01)


def test_without_rounding_the_joint_law_is_the_truth() -> None:
    for q in (0.3, 1e-4):
        assert joint_law(PROBS, q, untouched) == pytest.approx(q * PROBS, rel=1e-4)
        assert joint_law(PROBS, q, lambda x: on_grid(x, 53)) == pytest.approx(q * PROBS, rel=1e-4)


@pytest.mark.parametrize("q", [0.05, 0.5])
@pytest.mark.parametrize("bits", [7, 10])
def test_the_plain_argmax_follows_the_law_of_its_grid(bits: int, q: float) -> None:
    """A coarse grid shows the effect at unmasking probabilities that are cheap to simulate."""
    draws = 500_000
    law = joint_law(PROBS, q, lambda x: on_grid(x, bits), points=20_000)
    assert fits(plain(PROBS, q, draws, torch.float64, bits), draws, law) > ALARM
    if q == 0.05:
        assert fits(plain(PROBS, q, draws, torch.float64, bits), draws, q * PROBS) < 1e-9, "the truth is another law"


def test_leaving_out_hopeless_uniforms_does_not_change_the_law() -> None:
    """The short way, as it is used for small q, against the plain argmax on the same coarse grid, both as counts."""
    q, bits, draws = 0.03, 10, 500_000
    assert HORIZON * q < 1, "the short way is taken"
    short = simulate(Joint(Precision(torch.float64, bits)), LOG_PROBS, q, round(draws * q), seed=1)
    whole = plain(PROBS, q, draws, torch.float64, bits)
    assert fits(short, draws, joint_law(PROBS, q, lambda x: on_grid(x, bits), points=20_000)) > ALARM
    difference = (short - whole).double() / (short + whole).clamp(min=1).double().sqrt()  # nearly standard normal
    assert difference.abs().max() < 5.5  # false alarm below 5 x 4e-8


def test_float32_deviates_as_computed_and_float64_does_not() -> None:
    n = 200_000
    law = joint_law(PROBS, TINY, on_grid, points=20_000)
    assert law[-1] < 0.01 * TINY * PROBS[-1], "the rarest token disappears"
    float32, float64 = (simulate(Joint(p), LOG_PROBS, TINY, n, seed=0) for p in (FLOAT32, FLOAT64))
    assert fits(float32, n / TINY, law) > ALARM
    assert fits(float64, n / TINY, TINY * PROBS) > ALARM
    assert fits(float32, n / TINY, TINY * PROBS) < 1e-9, "the truth is another law"


@pytest.mark.parametrize("q", [TINY, 0.01, 0.5, 1.0])
def test_the_decoupled_sampler_has_the_true_rates(q: float) -> None:
    n = round(min(50_000, 4_000_000 * q))
    counts = simulate(decoupled, LOG_PROBS, q, n, seed=0)
    if q < 1:
        assert fits(counts, n / q, q * PROBS) > ALARM
    else:
        assert int(counts.sum()) == n, "the last step reveals what is left"
    assert chi_square(counts, torch.from_numpy(PROBS)) > ALARM


@pytest.mark.parametrize(
    "sampler", [Joint(FLOAT32), Joint(FLOAT64), decoupled], ids=["float32", "float64", "decoupled"]
)
@pytest.mark.parametrize("q", [0.02, 0.5])
def test_every_draw_follows_the_law_that_it_names(sampler: Callable, q: float) -> None:
    """Two laws in one call, in turn: the tokens of each follow its own, and all are revealed with probability q."""
    log_probs = torch.stack([LOG_PROBS[0], LOG_PROBS[0].flip(0)])
    law = torch.arange(400_000) % 2
    draw, token = sampler(log_probs, law, q, torch.Generator().manual_seed(0))
    assert len(draw.unique()) == len(draw)
    for which in (0, 1):
        counts = torch.bincount(token[law[draw] == which], minlength=5)
        assert fits(counts, 200_000, q * log_probs[which].exp().numpy()) > ALARM


def test_the_estimate_of_an_entropy() -> None:
    """Uniform over 200 tokens, 1,000 drawn: the plug-in entropy is low by 0.1, this one by less than 0.01 (the standard
    deviation of one estimate is 0.01, of the mean of 100 it is 0.001)."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.bincount(torch.randint(200, (1000,), generator=generator), minlength=200) for _ in range(100)]
    assert np.mean([entropy_of_counts(counts) for counts in drawn]) == pytest.approx(math.log(200), abs=0.01)
    assert math.isnan(entropy_of_counts(torch.zeros(3)))


# ---------------------------------------------------------------------------------------------------------------------
# Texts


@pytest.mark.parametrize("block_size", [3, 8])
@pytest.mark.parametrize("sampler", [Joint(FLOAT32), decoupled], ids=["joint", "decoupled"])
def test_texts_are_whole_and_cost_a_forward_per_change(block_size: int, sampler: Callable) -> None:
    model = toy_model(dtype=torch.float32)
    forwards = []
    model.register_forward_pre_hook(lambda module, arguments: forwards.append(len(arguments[0])))
    texts = generate(model, sampler, 5, 8, block_size, 300, seed=0)
    assert ((texts.tokens >= 0) & (texts.tokens < 7)).all()
    assert sum(forwards) == texts.forwards * 5 and texts.forwards <= 8, "only rows that changed, only when they did"
    assert texts.rate == pytest.approx(1, abs=1), "40 tokens"
    again = generate(model, sampler, 5, 8, block_size, 300, seed=0)
    assert torch.equal(texts.tokens, again.tokens)
    other = generate(model, sampler, 5, 8, block_size, 300, seed=1)
    assert not torch.equal(texts.tokens, other.tokens)


def test_the_schedule_is_linear() -> None:
    """Each of T steps reveals 1/T of all tokens on average: of what is still masked before step i, 1 / (T - i)."""
    seen = []

    def nothing_before_the_end(log_probs, law, q, generator):
        seen.append((q, len(law)))
        none = torch.empty(0, dtype=torch.long)
        return decoupled(log_probs, law, q, generator) if q == 1 else (none, none)

    texts = generate(toy_model(dtype=torch.float32), nothing_before_the_end, 2, 6, 6, 4, seed=0)
    assert seen == [(1 / 4, 12), (1 / 3, 12), (1 / 2, 12), (1, 12)]
    assert texts.rate == 0 and texts.forwards == 1 and (texts.tokens < 7).all()


def test_one_step_reveals_all_in_one_forward() -> None:
    texts = generate(toy_model(dtype=torch.float32), decoupled, 3, 8, 8, 1, seed=0)
    assert texts.forwards == 1 and math.isnan(texts.rate) and (texts.tokens < 7).all()


def test_kept_predictions_are_those_that_would_be_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model("causal", "next_token", dtype=torch.float32)
    now: dict[str, Any] = {}

    def remember(model, tokens, rows, start, block_size, log_probs) -> None:
        now.update(tokens=tokens, start=start, shape=log_probs.shape)
        predict(model, tokens, rows, start, block_size, log_probs)

    def check(log_probs, law, q, generator):
        anew = torch.empty(now["shape"])
        predict(model, now["tokens"], torch.arange(4), now["start"], 3, anew)
        assert torch.allclose(log_probs[law], anew.flatten(0, 1)[law], atol=1e-5)
        return decoupled(log_probs, law, q, generator)

    monkeypatch.setattr("hybrid.experiments.reverse_process.step_by_step.predict", remember)
    generate(model, check, 4, 8, 3, 20, seed=0)
    assert now["start"] == 6, "it came to the last block"


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_the_command_writes_what_it_prints(command: Command, trained: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("hybrid.experiments.numerics.ZIPF_VOCAB", 50)
    output = tmp_path / "docs" / "numerics.md"
    words = ["--checkpoint", trained, "--steps", 40, 2, "--rows", 2, "--samples", 50, "--seeds", 0, 1]
    done = command("experiments.numerics", *words, "--output", output)
    assert done.code == 0, done.err
    text = output.read_text()
    for line in done.out.splitlines():
        assert line in text
    assert "seeds 0, 1" in text and "--rows 2" in text and "exact, block size 1" in text
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    table = [line.split(" | ") for line in done.out.splitlines() if "decoupled" in line]
    assert [row[0].strip("| ") for row in table[-2:]] == ["2", "40"]


def test_without_a_checkpoint_or_an_output_nothing_is_written(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybrid.experiments.numerics.ZIPF_VOCAB", 50)
    monkeypatch.chdir(tmp_path)
    done = command("experiments.numerics", "--samples", 50, "--seeds", 0)
    assert done.code == 0 and "Zipf" in done.out and "Texts" not in done.out
    assert list(tmp_path.iterdir()) == []


BAD = [
    ("--steps 0", "--steps: 0 must be at least 1"),
    ("--samples 0", "--samples: 0 must be at least 1"),
    ("--seeds", "--seeds: expected at least one argument"),
    ("--length 33", r"--length: 33 exceeds the model's context of 32"),
    ("--block-size 64", "block_size: 64 is larger than data.seq_len = 32"),
]


@pytest.mark.parametrize("words, message", BAD, ids=[words for words, _ in BAD])
def test_a_wrong_option_is_one_line(words: str, message: str, command: Command, trained: Path) -> None:
    error = command("experiments.numerics", "--checkpoint", trained, *words.split()).error
    assert re.search(message, error), error


def test_a_file_of_another_kind_is_not_replaced(command: Command, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("mine")
    assert (
        "was not written by an experiment" in command("experiments.numerics", "--output", tmp_path / "notes.md").error
    )
    assert (tmp_path / "notes.md").read_text() == "mine"
