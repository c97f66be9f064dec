"""generate.py: which model it takes, and how that is decoded."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from conftest import Command
from terminals import text_of

import hybrid
from hybrid.decoding import DECODERS
from hybrid.decoding.decoder import suits
from hybrid.model import ModelConfig


def test_without_the_cache_the_text_is_the_same(command: Command, trained: Path) -> None:
    for size in ("1", "4"):
        words = ["--prompt", "The value", "--block-size", size, "--seed", "2"]
        assert text_of(command, trained, *words) == text_of(command, trained, *words, "--no-cache")


@pytest.mark.parametrize("name", sorted(name for name in DECODERS if suits(DECODERS[name], ModelConfig())))
def test_every_decoder_and_its_options(name: str, command: Command, trained: Path) -> None:
    words = ["--prompt", "The", "--max-new-tokens", "9", "--ignore-end-of-text", "--json", "--decoder", name]
    at_once = {"entropy_bounded": "gamma=1000"}.get(name, "steps=1")
    result = json.loads(text_of(command, trained, *words, at_once))
    assert result["tokens"] == 9 and result["forwards"] == 3  # blocks of 4: 3..3, 4..7, 8..11


def test_the_decoder_of_the_run_is_the_default(command: Command, copy_of_trained: Path) -> None:
    config = copy_of_trained / "config.yaml"
    assert "name: first_hitting" in config.read_text()
    config.write_text(config.read_text().replace("name: first_hitting", "name: first_hitting\n  steps: 2"))
    words = ["--max-new-tokens", "8", "--ignore-end-of-text", "--json"]
    assert json.loads(text_of(command, copy_of_trained, *words))["forwards"] == 4
    words += ["--decoder", "first_hitting"]
    assert json.loads(text_of(command, copy_of_trained, *words))["forwards"] == 8


def test_greedy_text_does_not_depend_on_the_seed(command: Command, trained: Path) -> None:
    words = ["--temperature", "0", "--decoder", "left_to_right", "--max-new-tokens", "8"]
    assert text_of(command, trained, *words, "--seed", "1") == text_of(command, trained, *words, "--seed", "2")
    assert text_of(command, trained, *words, "--seed", "1") == text_of(
        command, trained, "--top-k", "1", *words[2:], "--seed", "3"
    )


def test_guidance_and_a_planner(command: Command, trained: Path, tmp_path: Path) -> None:
    """Both cost forwards of their own; a model as its own planner is given the finished text, not the masked one."""
    words = ["--prompt", "The", "--max-new-tokens", "9", "--ignore-end-of-text", "--json"]
    plain, guided = (json.loads(text_of(command, trained, *words, "--guidance", w)) for w in ("0", "2.5"))
    assert (plain["forwards"], guided["forwards"]) == (9, 18)
    lm = hybrid.load(trained)
    ids = lm.generate([lm.tokenizer.encode("The")], 9, stop_at_end=False, guidance=2.5).tokens[0]
    assert guided["texts"] == [lm.tokenizer.decode(ids)]
    words += ["--decoder", "p2", "steps=2"]
    saved = lm.save(tmp_path / "planner")
    planned = json.loads(text_of(command, trained, *words, "--planner", saved))
    alone = json.loads(text_of(command, trained, *words))
    assert planned["forwards"] == 2 * alone["forwards"]


def test_a_size_that_was_not_trained_is_a_warning(command: Command, trained: Path) -> None:
    done = command("generate.py", "--checkpoint", trained, "--block-size", "8")
    assert done.code == 0
    assert "warning: block_size: 8 was not trained (trained: 4, 1)" in done.err.splitlines()


@pytest.mark.parametrize("which", ["run", "checkpoints", "step", "best", "saved", "from inside"])
def test_what_a_checkpoint_may_be(which: str, command: Command, trained: Path, tmp_path: Path) -> None:
    words = ["--prompt", "The", "--seed", "4"]
    expected = text_of(command, trained, *words)
    step = trained / "checkpoints" / "step-00000008"
    if which == "saved":
        hybrid.load(trained).save(tmp_path / "saved")
    assert (step.parent / "best").read_text().startswith(step.name)
    path = {"run": trained, "checkpoints": step.parent, "step": step, "best": step.parent / "best"}.get(which)
    path = tmp_path / "saved" if which == "saved" else path
    with contextlib.chdir(step.parent if which == "from inside" else tmp_path):
        assert text_of(command, path or Path("step-00000008"), *words) == expected


def test_a_damaged_latest_falls_back(command: Command, copy_of_trained: Path) -> None:
    step = copy_of_trained / "checkpoints" / "step-00000008"
    (step / "model.safetensors").write_bytes(b"")
    done = command("generate.py", "--checkpoint", copy_of_trained)
    assert done.code == 0
    assert "using step 4" in done.err and "(truncated?)" in done.err
