"""Entries that tables no longer have: refused in training, with what to write instead; old runs are still read."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Command, Configure
from training_toy import train

import hybrid
from hybrid.config import load_config


def rewrite(run: Path, old: str, new: str) -> None:
    text = (run / "config.yaml").read_text()
    assert text.count(old) == 1
    (run / "config.yaml").write_text(text.replace(old, new))


@pytest.mark.parametrize(
    "override, words",
    [
        ("objective.proposal=adaptive", ["objective.proposal: 'adaptive' was removed", "worse", "'uniform'"]),
        ("objective.proposal={name: adaptive, half_life: 9}", ["objective.proposal: 'adaptive' was removed"]),
        ("objective.estimator={name: count, proposal: adaptive}", ["objective.estimator.proposal: 'adaptive'"]),
        ("objective.weighting=mask_predict", ["objective.weighting: 'mask_predict' was removed", "'uniform'"]),
        ("objective.schedule=cosine_maskgit", ["objective.schedule: 'cosine_maskgit' was removed", "'cosine_md4'"]),
        ("decoder={name: p2, kappa: cosine_maskgit}", ["decoder.kappa: 'cosine_maskgit'", "'cosine_md4'"]),
    ],
)
def test_a_new_configuration_is_told_what_to_write(override: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        load_config(None, [override])
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_a_run_with_an_adaptive_proposal_generates_and_does_not_train(
    configure: Configure, command: Command, copy_of_trained: Path, tmp_path: Path
) -> None:
    rewrite(copy_of_trained, "  proposal: published", "  proposal:\n    name: adaptive\n    half_life: 50.0")
    lm = hybrid.load(copy_of_trained)
    assert lm.generate([[1, 2]], 4).tokens == hybrid.load(lm.save(tmp_path / "saved")).generate([[1, 2]], 4).tokens
    words = ["--checkpoint", copy_of_trained, "--max-new-tokens", 4]
    assert command("generate.py", *words).code == 0
    with pytest.raises(ValueError, match=r"objective\.proposal: 'adaptive' was removed: it measured worse"):
        load_config(copy_of_trained / "config.yaml")
    with pytest.raises(ValueError, match=r"^trainer\.resume: .* cannot go on: objective\.proposal: 'adaptive' was"):
        train(configure(tmp_path, "trainer.resume=auto", "trainer.steps=9"))
    train(configure(tmp_path, f"trainer.init_from={copy_of_trained}", "run.name=new", "trainer.steps=1"))


@pytest.mark.thin(1)
@pytest.mark.parametrize(
    "old, removed, today",
    [
        ("  weighting: elbo", "  weighting: mask_predict", ["objective.weighting=uniform"]),
        ("  schedule: linear", "  schedule: cosine_maskgit", ["objective.schedule=cosine_md4"]),
        (
            "  estimator: count", "  estimator:\n    name: time\n    schedule: cosine_maskgit",
            ["objective.estimator={name: time, schedule: cosine_md4}"],
        ),
    ],
)  # fmt: skip
def test_a_run_of_the_other_name_goes_on_with_the_one_that_stayed(
    old: str, removed: str, today: list[str], configure: Configure, copy_of_trained: Path, tmp_path: Path
) -> None:
    rewrite(copy_of_trained, old, removed)
    config = hybrid.load(copy_of_trained).config
    assert "maskgit" not in str(config.objective) and "mask_predict" not in str(config.objective)
    train(configure(tmp_path, *today, "trainer.resume=auto", "trainer.steps=9"))
    assert (copy_of_trained / "checkpoints" / "step-00000009").is_dir()
