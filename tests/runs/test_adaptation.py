"""Training starts from an autoregressive Hugging Face folder, at any block size."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from hugging_face_folders import write_folder
from training_toy import assert_same_tensors, tensors_of, train

import hybrid
from hybrid.config import Config, load_config
from hybrid.lm import LanguageModel
from hybrid.model.two_stream import two_stream_hidden
from hybrid.runs.run import Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 300 rows, 259 of which are tokens; texts begin with `<s>` and end with `<turn>` or `</s>`."""
    folder = tmp_path_factory.mktemp("theirs") / "tiny"
    return write_folder(folder, "llama3", eos_token_id=[258, 257], rms_norm_eps=1e-3)


def config_of(corpus: Path, runs: Path, folder: Path, *overrides: str) -> Config:
    return load_config(
        None,
        [
            *("run.name=adapted", f"run.folder={runs}", "run.device=cpu", f"data.corpus={corpus}", "data.seq_len=32"),
            *(f"data.tokenizer={folder}", f"trainer.init_from={folder}", "objective.block_size=4"),
            *("trainer.steps=3", "trainer.batch_tokens=64", "trainer.precision=fp32", "trainer.save_every=1"),
            *("trainer.eval_every=0", "eval.rows=2", "eval.sample_tokens=4", "optim.warmup_steps=1", *overrides),
        ],
    )


@pytest.mark.parametrize("context", ["causal", "block_causal"])
def test_before_its_first_step_it_is_the_source_at_block_size_1(
    context: str, folder: Path, corpus: Path, tmp_path: Path
) -> None:
    run = Run.of(config_of(corpus, tmp_path, folder, f"model.context={context}", "objective.block_size=[4,1]"))
    source = hybrid.load(folder)
    lm = LanguageModel(run.config, run.data.tokenizer, run.model.eval())
    tokens = run.data.train.rows(range(2)).tokens
    assert lm.tokenizer.end_of_text == source.tokenizer.end_of_text == 258 and run.data.train.count(258) > 5
    ours, theirs = lm.logits(tokens, block_size=1), source.logits(tokens)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
    assert ours.shape[-1] == 300 and float(theirs.abs().max()) > 1
    # Only MASK's row is new: the mean of the others.
    own, other = dict(run.model.state_dict()), dict(hybrid.load(folder).model.state_dict())
    assert_same_tensors(own, other)
    rows = own["embedding.weight"]
    torch.testing.assert_close(rows[300], rows[:300].mean(0))
    masked = torch.ones(2, 1, 32, dtype=torch.bool)
    hidden = two_stream_hidden(run.model, tokens, masked, 4)
    assert hidden.isfinite().all() and hidden.shape == (64, 32)


@pytest.mark.slow
def test_a_run_of_three_steps_goes_on_and_tells_all(folder: Path, corpus: Path, tmp_path: Path) -> None:
    weight = "objective.ar_weight=0.3"
    whole = train(config_of(corpus, tmp_path / "whole", folder, weight))
    train(config_of(corpus, tmp_path / "parts", folder, weight, "trainer.steps=2"))
    again = train(config_of(corpus, tmp_path / "parts", folder, weight, "trainer.resume=auto"))
    assert_same_tensors(tensors_of(whole), tensors_of(again))
    assert (json.loads((whole / "environment.json").read_text())["init_from"] or {})["sha256"]
    recorded = load_config(whole / "config.yaml", checked=False).model
    assert (recorded.dim, recorded.vocab_size, recorded.begin_token_id, recorded.end_token_ids) == (32, 300, 256, [257])
    assert (recorded.context, recorded.prediction, recorded.norm_eps) == ("causal", "next_token", 1e-3)
    lm = hybrid.load(whole)
    assert len(lm.generate(["The "], 8, block_size=4, stop_at_end=False).tokens[0]) == 8


def test_what_is_given_is_kept_and_what_is_not_is_theirs(folder: Path, corpus: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"model:\n  context: block_causal\n  rope_theta: 777.0\ntrainer:\n  init_from: {folder}\n")
    model = load_config(file, ["model.norm_eps=1e-5"]).model
    assert (model.context, model.rope_theta, model.norm_eps) == ("block_causal", 777, 1e-5)
    assert (model.dim, model.qk_norm, model.mlp_bias, model.prediction) == (32, False, True, "next_token")
    assert isinstance(model.rope_scaling, dict) and model.rope_scaling["name"] == "llama3"
    assert load_config(file, ["trainer.init_from=null"]).model.dim == 256
    assert load_config(file, ["trainer.init_from=nowhere"]).model.dim == 256
    assert load_config(file, checked=False).model.dim == 256


def test_a_configuration_opens_neither_tokenizer_nor_weights(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", "llama")
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).unlink()
    assert load_config(None, [f"trainer.init_from={folder}"]).model.dim == 32


def test_a_network_that_is_given_otherwise_is_told_or_refused(
    folder: Path, corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="hybrid")
    Run.of(config_of(corpus, tmp_path, folder, "model.norm_eps=1e-5"))
    assert "model.norm_eps = 1e-05 is 0.001 in trainer.init_from" in caplog.text and "model.context" not in caplog.text
    there = hybrid.load(folder).config.model.hidden_dim
    contradicting = (
        f"trainer.init_from: {folder} has weights of another architecture: model.hidden_dim = 64 (there {there}), "
        f"model.qk_norm = True (there False); leave out what is given here, or set model.hidden_dim={there} "
        "model.qk_norm=false"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(contradicting)}$"):
        config_of(corpus, tmp_path, folder, "model.hidden_dim=64", "model.qk_norm=true")
    with pytest.raises(ValueError, match=rf"has another vocabulary .* set data.tokenizer={folder}$"):
        Run.of(config_of(corpus, tmp_path, folder, f"data.tokenizer={folder}/tokenizer.json"))
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"silu"', '"relu"'))
    with pytest.raises(ValueError, match=rf"^{folder}: config.json: hidden_act 'relu'"):
        config_of(corpus, tmp_path, folder)
