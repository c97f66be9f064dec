"""generate.py: one line for everything that is wrong."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import Command, Configure, _module

from hybrid.data.tokenizers import ByteTokenizer
from hybrid.distributed import Ranks


def test_a_planner_of_another_tokenizer_is_refused(
    command: Command, trained: Path, configure: Configure, tmp_path: Path
) -> None:
    from hybrid.lm import LanguageModel
    from hybrid.model.build import build_model

    config = configure(tmp_path)
    tokenizer = ByteTokenizer()
    model = build_model(config.model, tokenizer.vocab_size, tokenizer.end_of_text, torch.device("cpu"), seed=0)
    other = LanguageModel(config, tokenizer, model).save(tmp_path / "bytes")
    error = command("generate.py", "--checkpoint", trained, "--planner", other).error
    assert re.search(r"planner: its tokenizer \(byte \w+\) is not that of the model \(char \w+\)", error), error


BAD = [
    ("--block-size 0", "block_size: 0 is too small; a block has from 1 to 32"),
    ("--block-size -3", "block_size: -3 is too small"),
    ("--block-size 33", "block_size: 33 is larger than data.seq_len = 32"),
    ("--decoder first_hiting", "decoder: 'first_hiting' is not one of .*did you mean 'first_hitting'"),
    ("--decoder confidence stepz=2", "decoder.*stepz"),
    ("--decoder confidence steps", "option 'steps' is not name=value"),
    ("--decoder confidence steps=0", "steps: 0 is too small"),
    ("--decoder confidence steps=many", "decoder.*steps.*'many'"),
    ("--decoder confidence steps=2 threshold=0.5", "give either steps or threshold"),
    ("--temperature -1", "temperature: -1.0 must be a finite number of at least 0"),
    ("--temperature nan", "temperature: nan must be"),
    ("--temperature inf", "temperature: inf must be"),
    ("--top-k 0", "top_k: 0 must be an integer of at least 1"),
    ("--top-p 0", r"top_p: 0.0 must be in \(0, 1\]"),
    ("--top-p 1.5", r"top_p: 1.5 must be in \(0, 1\]"),
    ("--guidance -1", "guidance: -1.0 must be a finite number of at least 0"),
    ("--planner no/such/run", "^error: planner: no/such/run does not exist"),
    ("--temperature 1e-320", "temperature: 1e-320 must be a finite number of at least 0"),
    ("--guidance 1e300", "guidance: 1e[+]300 must be"),
    ("--seed 9223372036854775808", "seed: 9223372036854775808 must be an integer of 64 bits"),
    ("--decoder margin name=p2", "decoder: 'name=p2' is no option; the name stands before the options"),
    ("--decoder margin threshold=.nan", "decoder.threshold: nan must be from 0 to 1"),
    ("--decoder margin threshold=-1", "decoder.threshold: -1.0 must be from 0 to 1"),
    ("--decoder confidence threshold=2", "decoder.threshold: 2.0 must be from 0 to 1"),
    ("--num-samples 100000000000", "--num-samples: 100000000000 are too many for one command; ask for at most 1000000"),
    ("--num-samples 1e11", "--num-samples: invalid int value: '1e11'"),
    ("--batch-size 0", "--batch-size: 0 must be at least 1"),
    ("--slide --max-new-tokens 100000000000", "max_new_tokens: 100000000000 new tokens .* exceed 1048576"),
    ("--infill --prompt the", "--infill: the prompt has no gap"),
    ("--infill --prompt the<gap:0>", "--infill: '<gap:0>' is no gap of 1 to 32 tokens"),
    ("--infill --prompt the<gap:2>the", r"gap at token 3 of prompt 0 .* block_size=8 would do \(it was not trained\)"),
    ("--num-samples 0", "--num-samples: 0 must be at least 1"),
    ("--max-new-tokens -1", "max_new_tokens: -1 must be an integer of at least 0"),
    ("--max-new-tokens 33", "exceed the context of 32"),
    ("--prompt thethethethethethethethethethethethe", "--prompt: 36 tokens fill the context of 32 .*--slide"),
    ("--max-new-tokens 1 --prompt thethethethethethethethethethethethe", "prompt 0 of 36 tokens exceed the context"),
    ("--prompt th\u00e9", "character '\u00e9' .* at position 2 is not among the"),
    ("--prompt-file no/such/file", "no/such/file: No such file"),
    ("--device toaster", "'toaster' is not a device"),
    ("--block-size eight", "--block-size: invalid int value: 'eight'"),
    ("--blok-size 8", r"unrecognized arguments: --blok-size 8 \(did you mean --block-size\?\)"),
    ("--blocksize=8", r"unrecognized arguments: --blocksize=8 \(did you mean --block-size\?\)"),
    ("--promt hi", r"\(did you mean --prompt\?\)"),
    ("block_size=8", r"unrecognized arguments: block_size=8 \(did you mean --block-size\?\)"),
    ("--decoder confidence --steps 4", r"--steps 4 \(did you mean --decoder confidence steps=4\?\)"),
    ("--nothing-near 8", "unrecognized arguments: --nothing-near 8; --help lists the options"),
]  # fmt: skip


@pytest.mark.parametrize("words, message", BAD, ids=[words for words, _ in BAD])
def test_a_wrong_option_is_one_line(words: str, message: str, command: Command, trained: Path) -> None:
    error = command("generate.py", "--checkpoint", trained, *words.split()).error
    assert re.search(message, error), error


def test_a_context_that_slides_takes_a_prompt_that_fills_it(command: Command, trained: Path) -> None:
    done = command("generate.py", "--checkpoint", trained, "--prompt", 12 * "the", "--slide", "--max-new-tokens", 4)
    assert done.code == 0 and done.out.startswith(12 * "the"), done.err


def test_an_empty_stop_is_refused(command: Command, trained: Path) -> None:
    assert "--stop: ''" in command("generate.py", "--checkpoint", trained, "--stop", "").error


def test_a_trace_that_cannot_be_written_is_refused_before_anything_is_done(command: Command, tmp_path: Path) -> None:
    """Before the model is looked for."""
    (tmp_path / "notes.html").write_text("mine")
    for path, message in (
        ("no/page.html", "no is not a folder"),
        ("notes.html", "exists and is not the page of a trace"),
    ):
        error = command("generate.py", "--checkpoint", "no/such/run", "--trace", tmp_path / path).error
        assert "--trace: " in error and message in error
    assert (tmp_path / "notes.html").read_text() == "mine"


def test_a_trace_is_of_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = _module("generate.py")
    monkeypatch.setattr(
        sys, "argv", ["generate.py", "--checkpoint", "no/such/run", "--trace", str(tmp_path / "page.html")]
    )
    with pytest.raises(ValueError, match="--trace: a page is written by one process, not by 2; start without torchrun"):
        module.generate(module.parse(), "", torch.device("cpu"), Ranks(1, 2))


def test_prompts_that_are_not_utf8(command: Command, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    done = command("generate.py", "--checkpoint", trained, "--prompt-file", tmp_path / "latin.txt")
    assert "latin.txt is not UTF-8 (byte 3)" in done.error
    assert "not UTF-8" in command("generate.py", "--checkpoint", trained, "--prompt", "-", stdin=b"caf\xe9").error


def test_checkpoints_that_cannot_be_used(command: Command, copy_of_trained: Path, tmp_path: Path) -> None:
    def error(path: Path) -> str:
        return command("generate.py", "--checkpoint", path).error

    assert "does not exist" in error(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no checkpoint" in error(tmp_path / "empty")
    assert "is a file" in error(copy_of_trained / "config.yaml")
    config = copy_of_trained / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("dim: 16", "dim: 32"))
    assert "another architecture" in error(copy_of_trained)
    config.unlink()
    assert "no config.yaml" in error(copy_of_trained)
    config.write_text(text)
    shutil.rmtree(copy_of_trained / "tokenizer")
    assert "tokenizer" in error(copy_of_trained)
    for step in (copy_of_trained / "checkpoints").glob("step-*"):
        (step / "ema.safetensors").write_bytes(b"rubbish")
    assert "none in" in error(copy_of_trained)
