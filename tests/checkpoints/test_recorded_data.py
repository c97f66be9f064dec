"""The data of the training is recorded with a model, compared with what is there now, and prepared again."""

from __future__ import annotations

import contextlib
import logging
import shutil
from pathlib import Path

import pytest
from conftest import Command, Configure
from recorded_runs import contents, records, write_corpus
from training_toy import train

import hybrid
from hybrid.checkpoints import finding
from hybrid.checkpoints.recorded_data import recorded_data
from hybrid.runs.run import Run


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["char", "bpe", "byte"])
def test_a_run_does_not_go_on_with_another_text(tokenizer: str, configure: Configure, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl")
    words = [f"data.corpus={corpus}", f"data.tokenizer={tokenizer}", "data.vocab_size=270"]
    folder = train(configure(tmp_path, *words, "trainer.steps=2"))
    before = contents(folder)
    write_corpus(corpus, "!")
    again = configure(tmp_path, *words, "trainer.steps=4", "trainer.resume=auto")
    with pytest.raises(
        ValueError, match=r"^data\.corpus: .*c\.jsonl is not the text that .*tiny was trained on"
    ) as error:
        Run.of(again)
    assert "put that text back" in str(error.value) and "another run.name" in str(error.value)
    assert contents(folder) == before
    write_corpus(corpus)
    train(again)
    assert finding.steps_done(folder) == 4


@pytest.mark.slow
def test_a_tokenizer_file_that_has_changed(configure: Configure, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl")
    words = [f"data.corpus={corpus}", "data.tokenizer=bpe"]
    small, large = (Run.of(configure(tmp_path, *words, f"data.vocab_size={n}")).data.tokenizer for n in (270, 280))
    small.save(tmp_path / "mine")
    words[1] = f"data.tokenizer={tmp_path / 'mine' / 'tokenizer.json'}"
    folder = train(configure(tmp_path, *words, "trainer.steps=2"))
    large.save(tmp_path / "mine")
    own = folder / "tokenizer" / "tokenizer.json"
    with pytest.raises(ValueError, match=rf"another tokenizer .*; set data\.tokenizer={own}, or start"):
        Run.of(configure(tmp_path, *words, "trainer.resume=auto"))
    run = Run.of(configure(tmp_path, words[0], f"data.tokenizer={own}", "trainer.resume=auto"))
    assert run.plan.checkpoint is not None and run.data.tokenizer.fingerprint == small.fingerprint


@pytest.mark.slow
def test_a_run_that_was_moved_goes_on_and_so_does_one_whose_text_was_moved(
    configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="hybrid")
    corpus = write_corpus(tmp_path / "c.jsonl")
    train(configure(tmp_path / "here", f"data.corpus={corpus}", "trainer.steps=2"))
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = corpus.rename(tmp_path / "other.jsonl")
    train(configure(tmp_path / "there", f"data.corpus={moved}", "trainer.steps=4", "trainer.resume=auto"))
    assert finding.steps_done(tmp_path / "there" / "tiny") == 4
    assert "other.jsonl holds the text that" in caplog.text
    assert recorded_data(tmp_path / "there" / "tiny")["corpus_path"] == str(moved)  # type: ignore[index]


def test_a_run_that_does_not_record_its_data_goes_on_with_a_word(
    configure: Configure, copy_of_trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configure(copy_of_trained.parent, "trainer.resume=auto")
    for content in ("{}", "[]", "{", '{"data": {"corpus_sha256": 3}}'):
        (copy_of_trained / "environment.json").write_text(content)
        assert Run.of(config).plan.checkpoint is not None
        assert caplog.text.count("does not record on which data it was trained") == 1, content
        caplog.clear()
    other = configure(copy_of_trained.parent, "trainer.resume=auto", "data.tokenizer=byte")
    with pytest.raises(ValueError, match=r"data\.tokenizer: 'byte', but the run to resume has 'char'"):
        Run.of(other)


def test_a_relative_corpus_is_that_of_the_training_wherever_one_calls_from(
    configure: Configure, command: Command, tmp_path: Path
) -> None:
    write_corpus(tmp_path / "a" / "c.jsonl")
    write_corpus(tmp_path / "b" / "c.jsonl", "Q")
    with contextlib.chdir(tmp_path / "a"):
        folder = train(configure(tmp_path, "data.corpus=c.jsonl", "data.tokenizer=byte", "trainer.steps=2")).absolute()
    words = ["--checkpoint", folder, "--block-size", 1, "--rows", 4]
    values = {}
    for place in ("a", "b"):
        with contextlib.chdir(tmp_path / place):
            done = command("evaluate", *words)
        assert done.code == 0, done.err
        values[place] = records(folder)["results"][0]["nats_per_token"]
    assert values["a"] == values["b"]
    assert records(folder)["data"]["corpus_path"] == str(tmp_path / "a" / "c.jsonl")

    write_corpus(tmp_path / "a" / "c.jsonl", "Q")
    with contextlib.chdir(tmp_path / "b"):
        error = command("evaluate", *words).error
        assert "c.jsonl is not the text that the model was trained on" in error and "--data c.jsonl" in error
        assert command("evaluate", *words, "--data", "c.jsonl", "--split", "validation").code == 0
    other = records(folder)
    assert other["results"][0]["nats_per_token"] != values["a"]
    assert other["data"]["corpus_sha256"] != recorded_data(folder)["corpus_sha256"]  # type: ignore[index]

    (tmp_path / "a" / "c.jsonl").unlink()
    write_corpus(tmp_path / "c.jsonl")
    with contextlib.chdir(tmp_path):  # the whole was moved: where it lay there is none, here is the same
        assert command("evaluate", *words).code == 0
    assert records(folder)["results"][0]["nats_per_token"] == values["a"]


def test_a_saved_model_and_the_experiments_compare_their_text_too(
    configure: Configure, command: Command, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl")
    folder = train(configure(tmp_path, f"data.corpus={corpus}", "trainer.steps=2"))
    hybrid.load(folder).save(tmp_path / "saved")
    assert recorded_data(tmp_path / "saved") == recorded_data(folder)
    write_corpus(corpus, "!")
    for path in (folder, tmp_path / "saved"):
        error = command("evaluate", "--checkpoint", path).error
        assert "can't be read as the text that the model was trained on: character '!'" in error
    error = command("experiments.likelihoods", "--runs", folder, "--rows", 2).error
    assert "the text that the model was trained on" in error
