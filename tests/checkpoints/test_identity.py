"""Evaluations and finished runs name what they were made from, and are made again when it changes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from conftest import WORDS, Command, Configure
from recorded_runs import contents, records, write_corpus
from training_toy import train

import hybrid
from hybrid.checkpoints.identity import identity_at, identity_of
from hybrid.sweep.plan import Planned
from hybrid.sweep.state import is_evaluated, state_of
from hybrid.training.metrics import read_metrics


def phrases(path: Path, noun: str) -> Path:
    """Documents of the characters that the tiny run knows."""
    texts = [f"the {a} of a {noun} is {b} " * 3 for a in WORDS for b in WORDS]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_an_evaluation_names_its_checkpoint(command: Command, copy_of_trained: Path, tmp_path: Path) -> None:
    step = copy_of_trained / "checkpoints" / "step-00000004"
    for path, number in ((copy_of_trained, 8), (step, 4)):
        assert command("evaluate", "--checkpoint", path, "--rows", 2, "--draws", 1).code == 0
        found = records(copy_of_trained)["checkpoint"]
        assert found["step"] == number and len(found["sha256"]) == 64
    assert found == identity_of(step) != identity_at(copy_of_trained)
    again = shutil.copytree(copy_of_trained, tmp_path / "copy")
    assert identity_at(again) == identity_at(copy_of_trained)
    weights = hybrid.load(copy_of_trained).save(tmp_path / "saved")
    assert identity_at(weights) == hybrid.load(weights).origin.checkpoint != found
    assert identity_at(tmp_path) is None


@pytest.mark.slow
def test_what_was_trained_on_is_evaluated_anew_and_left_out_until_then(
    command: Command, configure: Configure, tmp_path: Path
) -> None:
    words = ["objective.block_size=4", "eval.sample_tokens=0", "trainer.save_every=0"]
    folder = train(configure(tmp_path / "runs", *words, "trainer.steps=4"))
    evaluation = ["--checkpoint", str(folder), "--rows", "2", "--draws", "1"]
    assert not is_evaluated(folder, evaluation)
    assert command("evaluate", *evaluation).code == 0
    assert is_evaluated(folder, evaluation)

    longer = configure(tmp_path / "runs", *words, "trainer.steps=12", "trainer.resume=auto")
    train(longer)
    assert not is_evaluated(folder, evaluation)
    done = command("report.__main__", folder, "--output", tmp_path / "report")
    assert done.code == 0, done.err
    assert "tiny: its eval.json is of step 4, and the run is at step 12: left out; evaluate it again" in done.err
    (row,) = csv.DictReader((tmp_path / "report" / "runs.csv").read_text().splitlines())
    last = read_metrics(folder)[-1]
    assert (row["steps"], float(row["nats_per_token"])) == ("12", last["val/nelbo/b4"])

    assert command("evaluate", *evaluation).code == 0
    moved = shutil.move(folder, tmp_path / "moved")
    assert is_evaluated(moved, ["--checkpoint", str(moved), *evaluation[2:]])
    done = command("report.__main__", moved, "--output", tmp_path / "report")
    (row,) = csv.DictReader((tmp_path / "report" / "runs.csv").read_text().splitlines())
    assert "left out" not in done.err
    assert (row["steps"], float(row["nats_per_token"])) == ("12", records(moved)["results"][0]["nats_per_token"])

    fewer = configure(tmp_path, *words, "trainer.steps=8", "run.name=moved")
    with pytest.raises(ValueError, match=r"has trainer\.steps = 12, and the sweep wants 8; choose another --folder"):
        state_of(planned(fewer))


@pytest.mark.slow
def test_an_evaluation_of_before_is_of_another_judge_or_text(
    command: Command, copy_of_trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = shutil.copytree(copy_of_trained, tmp_path / "judge")
    words = ["--checkpoint", copy_of_trained, "--rows", 2, "--draws", 1, "--data", tmp_path / "c.jsonl"]
    words += ["--decoders", "margin", "--samples", 2, "--new-tokens", 4, "--judge", judge]
    words = [str(word) for word in words]
    phrases(tmp_path / "c.jsonl", "list")
    assert not is_evaluated(copy_of_trained, words)
    assert command("evaluate", *words).code == 0
    assert is_evaluated(copy_of_trained, words)
    assert not is_evaluated(copy_of_trained, [*words, "--seed", "1"])
    shutil.rmtree(judge / "checkpoints" / "step-00000008")
    assert not is_evaluated(copy_of_trained, words)
    shutil.copytree(copy_of_trained / "checkpoints", judge / "checkpoints", dirs_exist_ok=True)
    assert is_evaluated(copy_of_trained, words) and "does not tell" not in capsys.readouterr().err
    phrases(tmp_path / "c.jsonl", "name")
    assert not is_evaluated(copy_of_trained, words)


def test_an_evaluation_that_does_not_name_its_checkpoint_is_used_with_a_word(
    command: Command, copy_of_trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(copy_of_trained), "--rows", "2", "--draws", "1"]
    assert command("evaluate", *words).code == 0
    old = {key: value for key, value in records(copy_of_trained).items() if key != "checkpoint"}
    (copy_of_trained / "eval.json").write_text(json.dumps(old))
    assert is_evaluated(copy_of_trained, words)
    said = capsys.readouterr().err
    assert "eval.json does not tell which checkpoint was evaluated; it is taken for the latest" in said
    done = command("report.__main__", copy_of_trained, "--output", tmp_path / "report")
    assert done.code == 0 and "tiny: eval.json does not tell which checkpoint was evaluated" in done.err
    for content in ("{}", "[]", "[" * 100_000, '{"settings": 3}', '{"settings": {}, "judge": 3}'):
        (copy_of_trained / "eval.json").write_text(content)
        assert not is_evaluated(copy_of_trained, words)


def planned(config: hybrid.Config) -> Planned:
    return Planned(config.run.name, config, [])


@pytest.mark.slow
def test_a_finished_run_of_another_text_or_start_is_not_the_one_that_is_planned(
    configure: Configure, copy_of_trained: Path, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl")
    words = [f"data.corpus={corpus}", "trainer.steps=2"]
    start = train(configure(tmp_path / "start", *words))
    words += [f"trainer.init_from={start}"]
    config = configure(tmp_path / "runs", *words)
    folder = train(config)
    assert json.loads((folder / "environment.json").read_text())["init_from"] == identity_at(start)
    assert state_of(planned(config)).is_finished
    train(configure(tmp_path / "start", words[0], "trainer.steps=4", "trainer.resume=auto"))
    with pytest.raises(
        ValueError, match=r"started from .*start/tiny at step 2, and the sweep wants what is there now, step 4"
    ):
        state_of(planned(config))
    write_corpus(corpus, "!")
    with pytest.raises(ValueError, match=r"is not the text that .* was trained on"):
        state_of(planned(config))
    corpus.unlink()
    with pytest.raises(ValueError, match=r"started from"):  # without the text, what else is known is still compared
        state_of(planned(config))


@pytest.mark.parametrize(
    "override", ["trainer.steps=4", "trainer.minutes=9.0", "trainer.micro_batch_tokens=64", "trainer.recompute=true",
                 "eval.rows=2", "optim.lr=0.1"],
)  # fmt: skip
def test_an_experiment_takes_no_run_of_other_settings(
    override: str, configure: Configure, copy_of_trained: Path
) -> None:
    same = configure(copy_of_trained.parent, "trainer.log_every=1", "eval.sample_tokens=0", "trainer.resume=auto")
    assert state_of(planned(same), strict=True).is_finished
    key, _, value = override.partition("=")
    other = configure(copy_of_trained.parent, override)
    with pytest.raises(
        ValueError, match=rf"tiny: has {key} = .*, and this one wants {value.capitalize()}; choose another"
    ):
        state_of(planned(other), "this one", strict=True)


@pytest.mark.slow
def test_objectives_are_not_printed_under_other_settings(command: Command, corpus: Path, tmp_path: Path) -> None:
    words = (
        "--config", "configs/bytes.yaml", "--only", "elbo", "bert", "--seeds", 0, "--folder", tmp_path / "runs",
        "--rows", 2, "--samples", 2, "--new-tokens", 8, f"data.corpus={corpus}", "data.tokenizer=char",
        "data.seq_len=32", "data.validation_fraction=0.2", "model.dim=16", "model.n_layers=1", "model.n_heads=2",
        "optim.warmup_steps=1", "trainer.batch_tokens=64",
    )  # fmt: skip
    assert command("experiments.objectives", *words, "trainer.steps=2").code == 0
    before = contents(tmp_path / "runs")
    for override in ("trainer.steps=3", "trainer.precision=fp32", "data.validation_fraction=0.3"):
        error = command("experiments.objectives", *words, "trainer.steps=2", override).error
        key = override.partition("=")[0]
        assert f"costs.json: was made with {key} = " in error and "choose another --folder" in error
    assert contents(tmp_path / "runs") == before
    costs = json.loads((tmp_path / "runs" / "costs.json").read_text())
    (tmp_path / "runs" / "costs.json").write_text(json.dumps(costs["values"]))
    error = command("experiments.objectives", *words, "trainer.steps=2").error
    assert "does not say from which settings it was made" in error
    (tmp_path / "runs" / "costs.json").unlink()
    error = command("experiments.objectives", *words, "trainer.steps=3").error
    assert "elbo-s0: has trainer.steps = 2, and this experiment wants 3" in error
