"""What is said of a run that goes on, or starts from the weights of another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import Configure
from training_toy import train

from hybrid.runs.run import Run


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


def test_a_run_that_is_refused_is_not_said_to_go_on(
    configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "c").mkdir()
    for number in range(40):
        (tmp_path / "c" / f"{number}.txt").write_text(f"text of many words {number} " * 30)
    few = ["trainer.steps=1", "eval.sample_tokens=0", f"data.corpus={tmp_path / 'c'}"]
    train(configure(tmp_path / "runs", *few))
    longer = configure(tmp_path / "runs", *few, "trainer.resume=auto", "trainer.steps=2")
    Run.of(longer)
    goes_on = "trainer.steps: 2 instead of 1: the run goes on, but not as if it had never stopped"
    assert caplog.messages.count(goes_on) == 1
    caplog.clear()
    (tmp_path / "c" / "0.txt").write_text("another text")
    with pytest.raises(ValueError, match="is not the text that"):
        Run.of(longer)
    assert "the run goes on" not in caplog.text
