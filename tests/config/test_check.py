"""What does not fit together is refused before any work starts; what is ignored is warned of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hybrid.config import check, load_config, resolve_block_sizes

REPO = Path(__file__).parents[2]


def refusal(*overrides: str) -> str:
    """The text of the error of `check`, which loading calls."""
    config = load_config(None, overrides, checked=False)
    with pytest.raises(ValueError) as caught:
        check(config)
    with pytest.raises(ValueError) as again:
        load_config(None, overrides)
    assert str(again.value) == str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "value, expected",
    [(1, [1]), (64, [64]), (7, [7]), ("seq_len", [64]), ([8, 1], [8, 1]), ([1, "seq_len"], [1, 64])],
)
def test_block_sizes(value: Any, expected: list[int]) -> None:
    assert resolve_block_sizes(value, 64) == expected


@pytest.mark.parametrize(
    "value, words",
    [
        (0, ["0", "1 to 64"]),
        (-3, ["-3", "1 to 64"]),
        (65, ["65", "data.seq_len = 64"]),
        (True, ["True"]),
        (8.0, ["8.0"]),
        ("abc", ["'abc'", "seq_len"]),
        ("8", ["'8'"]),
        (None, ["None"]),
        ([], ["[]", "empty"]),
        ([4, 4], ["twice"]),
        ([64, "seq_len"], ["twice"]),
        ([[4]], ["[4]"]),
        ([4, 0], ["0"]),
        ({"a": 1}, ["{'a': 1}"]),
    ],
)
def test_bad_block_sizes(value: Any, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        resolve_block_sizes(value, 64, "eval.block_sizes")
    text = str(caught.value)
    assert text.startswith("eval.block_sizes: ") and "\n" not in text
    assert [word for word in words if word not in text] == [], text


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["objective.block_size=0"], ["objective.block_size", "0"]),
        (["objective.block_size=257"], ["objective.block_size", "257", "data.seq_len = 256"]),
        (["eval.block_sizes=[1, 300]"], ["eval.block_sizes", "300"]),
        (["data.seq_len=1"], ["data.seq_len", "1", "2"]),
        (["data.validation_fraction=1"], ["data.validation_fraction", "1"]),
        (["data.validation_fraction=0"], ["data.validation_fraction", "0"]),
        (["model.n_heads=3"], ["model.n_heads", "3", "model.dim", "256"]),
        (["model.dim=12"], ["model.dim", "12", "even"]),
        (["model.n_kv_heads=3"], ["model.n_kv_heads", "3", "model.n_heads", "4"]),
        (["model.n_kv_heads=0"], ["model.n_kv_heads", "0"]),
        (["model.rope_theta=-1"], ["model.rope_theta", "-1", "positive"]),
        (["trainer.batch_tokens=100"], ["trainer.batch_tokens", "100", "data.seq_len = 256", "try 256"]),
        (["trainer.batch_tokens=600"], ["600", "try 512 or 768"]),
        (["trainer.batch_tokens=0"], ["trainer.batch_tokens", "0"]),
        (["trainer.micro_batch_tokens=300"], ["trainer.micro_batch_tokens", "300"]),
        (["trainer.micro_batch_tokens=768"], ["trainer.micro_batch_tokens", "768", "trainer.batch_tokens = 8192"]),
        (["trainer.micro_batch_tokens=16384"], ["trainer.micro_batch_tokens", "16384"]),
        (["trainer.steps=0"], ["trainer.steps", "0", "1"]),
        (["trainer.minutes=0"], ["trainer.minutes", "0", "positive"]),
        (["optim.lr=0"], ["optim.lr", "positive"]),
        (["optim.lr=.nan"], ["optim.lr", "nan"]),
        (["optim.lr=.inf"], ["optim.lr", "inf"]),
        (["optim.beta2=1"], ["optim.beta2", "1"]),
        (["optim.ema_decay=1.0"], ["optim.ema_decay", "1"]),
        (["optim.decay_fraction=1.5"], ["optim.decay_fraction", "1.5"]),
        (["optim.grad_clip=-1"], ["optim.grad_clip", "-1"]),
        (["objective.draws=0"], ["objective.draws", "0"]),
        (["objective.ar_weight=0.5"], ["objective.ar_weight: 0.5", "model.context=causal"]),
        (["objective.name=latent"], ["model.latent: 0", "objective.name = latent", "model.latent=4"]),
        (
            ["objective.name=latent", "model.latent=2", "model.prediction=next_token", "objective.block_size=1"],
            ["objective.block_size: 1", "objective.name = latent", "model.prediction = next_token"],
        ),
        (
            ["objective.name=latent", "model.latent=2", "objective.weighting={name: cart, p: 0.5}"],
            ["objective.weighting: cart (p 0.5)", "objective.name = latent"],
        ),
        (["model.latent=-1"], ["model.latent: -1"]),
        (["objective.complementary=true"], ["objective.draws: 1 is odd", "complementary"]),
        (["objective.proposal={name: explicit, weights: [1, 2]}"], ["weights: 2 weights", "block size is 8"]),
        (["objective.estimator={name: time, schedule: nope}"], ["objective.estimator.schedule", "'nope'"]),
        (["eval.rows=-1"], ["eval.rows", "-1"]),
        (["eval.draws=0"], ["eval.draws", "0"]),
        (["eval.sample_prompts=abc"], ["eval.sample_prompts", "'abc'"]),
        (["run.seed=-1"], ["run.seed", "-1"]),
        (["run.name=../x"], ["run.name", "'../x'"]),
        (["run.name=/x"], ["run.name", "'/x'"]),
        (["run.device=gpu"], ["run.device", "'gpu'", "cuda"]),
    ],
)
def test_what_does_not_fit_together_is_refused(overrides: list[str], words: list[str]) -> None:
    text = refusal(*overrides)
    assert [word for word in words if word not in text] == [], text


def test_a_warm_up_that_never_ends_is_warned_of() -> None:
    (warning,) = check(load_config(None, ["trainer.steps=50"]))
    assert warning == (
        "optim.warmup_steps = 100 is more than trainer.steps = 50: the learning rate never reaches its peak"
    )


def test_a_short_last_block_is_fine() -> None:
    assert check(load_config(None, ["objective.block_size=[7,100]", "eval.block_sizes=[3, seq_len]"])) == []


@pytest.mark.parametrize(
    "overrides, key",
    [
        (["objective.schedule=cosine_mdlm"], "objective.schedule"),
        (
            ["objective.estimator={name: time, schedule: linear}", "objective.schedule=cosine_mdlm"],
            "objective.schedule",
        ),
        (["objective.estimator=time", "objective.proposal=uniform"], "objective.proposal"),
        (["objective.estimator=time", "objective.complementary=true", "objective.draws=2"], "objective.complementary"),
        (["optim.muon_lr=0.1"], "optim.muon_lr"),
        (["optim.momentum=0.9"], "optim.momentum"),
        (["optim.decay_fraction=0.5"], "optim.decay_fraction"),
        (["optim.schedule=constant", "optim.final_lr_ratio=0.5"], "optim.final_lr_ratio"),
        (["data.vocab_size=1000"], "data.vocab_size"),
        (["data.column=body"], "data.column"),
    ],
)
def test_settings_without_effect_are_warned_of(overrides: list[str], key: str) -> None:
    (warning,) = check(load_config(None, overrides))
    assert warning.startswith(f"{key} = ") and "ignored" in warning and "\n" not in warning


@pytest.mark.parametrize(
    "override, words",
    [
        ("objective.estimator={name: clipped, low: 0.2}", "objective.estimator = clipped is biased"),
        ("objective.weighting=bert", "objective.weighting = bert is not the ELBO"),
    ],
)
def test_an_objective_that_is_not_the_bound_says_so(override: str, words: str) -> None:
    (warning,) = check(load_config(None, [override]))
    assert words in warning and "\n" not in warning


def test_settings_with_effect_are_not_warned_of() -> None:
    overrides = ["objective.estimator=time", "objective.schedule=cosine_mdlm", "optim.name=muon", "optim.muon_lr=0.1"]
    assert check(load_config(None, [*overrides, "optim.schedule=wsd", "optim.decay_fraction=0.5"])) == []


@pytest.mark.usefixtures("beside_models")
@pytest.mark.parametrize(
    "path", [path for path in sorted((REPO / "configs").rglob("*.yaml")) if path.parent.name != "sweeps"], ids=str
)
def test_every_config_loads_and_fits(path: Path) -> None:
    assert [warning for warning in check(load_config(path)) if "is not the ELBO" not in warning] == []
