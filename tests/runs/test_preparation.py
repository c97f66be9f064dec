"""Starting from the weights of another run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Configure
from safetensors.torch import load_file
from training_toy import assert_same_tensors, train

import hybrid
from hybrid.checkpoints import finding
from hybrid.checkpoints.importers import Origin, open_model
from hybrid.config.start import refuse_other_sizes
from hybrid.model import ModelConfig
from hybrid.runs.run import Run


@pytest.mark.parametrize(
    "other", ["objective.block_size=8", "model.context=causal", "objective.estimator=time", "data.seq_len=64"]
)
def test_init_from_takes_the_averaged_weights(other: str, configure: Configure, trained: Path, tmp_path: Path) -> None:
    run = Run.of(configure(tmp_path, f"trainer.init_from={trained}", other))
    assert_same_tensors(dict(run.model.state_dict()), dict(hybrid.load(trained).model.state_dict()))
    averaged = load_file(finding.find_checkpoint(trained) / "ema.safetensors")
    assert torch.equal(run.model.embedding.weight, averaged["embedding.weight"])


def test_init_from_begins_a_new_run(configure: Configure, trained: Path, tmp_path: Path) -> None:
    options = [
        f"trainer.init_from={trained}",
        "trainer.steps=2",
        "trainer.save_every=1",
        "objective.block_size=seq_len",
    ]
    folder = train(configure(tmp_path, *options))
    assert finding.step_of(finding.find_checkpoint(folder)) == 2
    after = hybrid.load(folder).model.embedding.weight
    assert not torch.equal(after, hybrid.load(trained).model.embedding.weight)
    # Resuming goes on from the run's own weights, not from those it was started with.
    resumed = Run.of(configure(tmp_path, *options, "trainer.resume=auto"))
    assert resumed.plan.checkpoint is not None
    assert not torch.equal(resumed.model.embedding.weight, hybrid.load(trained).model.embedding.weight)


def test_a_layer_of_a_latent_that_the_start_lacks_begins_at_zero(
    configure: Configure, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        run = Run.of(configure(tmp_path, f"trainer.init_from={trained}", "model.latent=2"))
    weights = dict(run.model.state_dict())
    assert not weights.pop("latent_weight").any() and "has no such weights, so they start at zero" in caplog.text
    assert_same_tensors(weights, dict(hybrid.load(trained).model.state_dict()))
    refuse_other_sizes(ModelConfig(latent=2), ModelConfig(), "a folder in another format", is_taken=True)


@pytest.mark.parametrize("numbers", [0, 3])
def test_a_start_with_another_latent_is_refused(
    numbers: int, configure: Configure, copy_of_trained: Path, tmp_path: Path
) -> None:
    """The run that is started from is made to have one."""
    settings = copy_of_trained / "config.yaml"
    settings.write_text(settings.read_text().replace("latent: 0", "latent: 2"))
    stored, _ = open_model(copy_of_trained)
    theirs = replace(stored, tensors={**stored.tensors, "latent_weight": torch.zeros(16, 2)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hybrid.runs.preparation.open_model", lambda _: (theirs, Origin(folder=copy_of_trained)))
        message = rf"trainer.init_from: .* model.latent = {numbers} \(there 2\); set model.latent=2$"
        with pytest.raises(ValueError, match=message):
            Run.of(configure(tmp_path / "new", f"trainer.init_from={copy_of_trained}", f"model.latent={numbers}"))


@pytest.mark.parametrize("name", ["latent", "di4c"])
def test_draws_of_a_latent_need_memory(
    name: str, configure: Configure, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of `latent` for its share of the rows, half; each noise draw has so many noisy copies."""
    asked = []
    monkeypatch.setattr("hybrid.runs.preparation.check_batch", lambda _, tokens, copies, *rest: asked.append(copies))
    teacher = [f"objective.teacher={trained}"] if name == "di4c" else []
    options = f"objective.name={{name: {name}, latents: 11}}"
    Run.of(configure(tmp_path, options, "model.latent=2", "objective.draws=3", *teacher))
    assert asked[0] == {"latent": 3 * 6, "di4c": 3 * 11}[name]


@pytest.mark.parametrize(
    "other, message",
    [
        (
            "data.tokenizer=byte",
            r"^trainer\.init_from: .* has another vocabulary \(char, \d+ ids, fingerprint \w{16}\) .*byte",
        ),
        ("model.dim=32", r"another architecture: model.dim = 32 .there 16.; set model.dim=16"),
        ("model.n_layers=2", r"another architecture: model.n_layers = 2 .there 1.; set model.n_layers=1$"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    other: str, message: str, configure: Configure, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Run.of(configure(tmp_path, f"trainer.init_from={trained}", other))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tiny").exists()


def test_another_vocabulary_of_the_same_name_and_size_is_told_apart(configure: Configure, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(40):
            (tmp_path / name / f"{number}.txt").write_text(f"{name} text of many words {number} " * 30)
    few = ["trainer.steps=1", "eval.sample_tokens=0"]
    with_bpe = ["data.tokenizer=bpe", "data.vocab_size=257"]
    for tokenizer in ([], with_bpe):
        start = train(
            configure(
                tmp_path / "runs", f"data.corpus={tmp_path / 'a'}", *few, *tokenizer, f"run.name=s{len(tokenizer)}"
            )
        )
        own = start / "tokenizer" / "tokenizer.json"
        way_out = f"set data.tokenizer={own}" if tokenizer else "train with its tokenizer"
        with pytest.raises(ValueError) as caught:
            Run.of(
                configure(
                    tmp_path / "runs",
                    f"data.corpus={tmp_path / 'b'}",
                    "data.tokenizer=char",
                    f"trainer.init_from={start}",
                    "run.name=new",
                )
            )
        told = str(caught.value)
        prints = re.findall(r"\((?:char|bpe), \d+ ids, fingerprint (\w{16})\)", told)
        assert told.endswith(f"; {way_out}") and len(set(prints)) == 2, told
