"""python -m hybrid.evaluate of a model with random numbers in MASK: which likelihoods are those of its texts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Command

import hybrid
from hybrid.model.build import build_model

pytestmark = pytest.mark.usefixtures("any_size_may_be_asked_for")


@pytest.fixture
def with_latent(lm: hybrid.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model that the command loads has random numbers in MASK, and reads causally, too."""
    config = replace(lm.config, model=replace(lm.config.model, latent=2, context="causal"))
    model = build_model(config.model, lm.tokenizer.vocab_size, lm.tokenizer.end_of_text, torch.device("cpu"), seed=0)
    assert model.latent_weight is not None
    with torch.no_grad():
        model.latent_weight.normal_()
    monkeypatch.setattr("hybrid.lm.load", lambda *_: replace(lm, model=model.eval(), config=config))


def evaluated(command: Command, folder: Path, *words: object) -> tuple[dict[str, str], str, dict]:
    """The relation of each likelihood, all that is printed, and eval.json."""
    done = command("evaluate", "--checkpoint", folder, "--rows", 2, "--draws", 1, "--samples", 2, "--new-tokens", 4,
                   "--block-size", 4, "--orders", "margin", "--decoders", "margin",
                   "--likelihoods", "causal", "latent_bound:steps=2,latents=2", *words)  # fmt: skip
    assert done.code == 0, done.err
    lines = [line.split() for line in done.out.split("\n\n")[0].splitlines()[2:]]
    signs = {line[1].partition(":")[0]: sign for line in lines for sign in line[2:4] if sign in ("=", "<=", "~")}
    return signs, done.out, json.loads((folder / "eval.json").read_text())


@pytest.mark.slow
@pytest.mark.usefixtures("with_latent")
def test_only_the_law_of_the_texts_is_said_to_be_it(command: Command, copy_of_trained: Path) -> None:
    """Policies and bounds are of MASK without random numbers, `latent_bound` of fresh ones, `causal` of any."""
    for latent, words in (("fresh", []), ("keep", ["--latent", "keep"]), ("none", ["--latent", "none"])):
        signs, printed, saved = evaluated(command, copy_of_trained, *words)
        of_mask, of_fresh = "=" if latent == "none" else "~", "<=" if latent == "fresh" else "~"
        assert signs == {"bound": "<=" if latent == "none" else "~", "policy": of_mask, "causal": "=",
                         "latent_bound": of_fresh}  # fmt: skip
        said = f"of MASK without random numbers: the likelihood of texts written with --latent none, not {latent}"
        beside = f"; of MASK without random numbers, not of texts written with --latent {latent}"
        assert (said in printed) == (beside in printed) == (latent != "none")
        assert (f"the likelihood of texts written with --latent fresh, not {latent}" in printed) == (latent != "fresh")
        assert saved["settings"].get("latent", "fresh") == latent
        assert [line.get("latent") for line in saved["results"]] == ["none", "none", None, "fresh"]


def test_of_other_models_nothing_is_said(command: Command, copy_of_trained: Path) -> None:
    words = ["--checkpoint", copy_of_trained, "--rows", 2, "--draws", 1, "--orders", "margin", "--block-size", 4]
    done = command("evaluate", *words)
    assert done.code == 0 and "random numbers" not in done.out and "~" not in done.out
    done = command("evaluate", *words, "--decoders", "margin", "--latent", "keep")
    assert "latent: 'keep' has no effect on a model with model.latent=0; leave it out" in done.error
