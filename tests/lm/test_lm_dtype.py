"""The dtype that weights are kept in, and the precision that goes with it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import Command
from safetensors.torch import load_file, save_file
from torch import Tensor

import hybrid
from hybrid.data.tokenizers import CharTokenizer
from hybrid.evaluation.sentence import SENTENCE, likelihood_of_a_sentence
from hybrid.lm import LanguageModel

EPS = {"bfloat16": 2**-8, "float16": 2**-11}


def dtypes_of(lm: LanguageModel) -> set[torch.dtype]:
    return {tensor.dtype for tensor in (*lm.model.parameters(), *lm.model.buffers())}


@pytest.mark.parametrize("name, precision", [("bfloat16", "bf16"), ("float16", "fp16")])
def test_weights_of_16_bits_are_multiplied_as_they_are(
    name: str, precision: str, trained: Path, tokens: Tensor, tmp_path: Path
) -> None:
    dtype, wide = getattr(torch, name), hybrid.load(trained)
    lm = hybrid.load(trained, dtype=name)
    assert lm.precision == precision and dtypes_of(lm) == {dtype}
    before = lm.save(tmp_path / "before")
    logits, exact = lm.logits(tokens), wide.logits(tokens)
    assert logits.dtype == dtype == lm.model.dtype and dtypes_of(lm) == {dtype}
    assert (logits.float() - exact).abs().max() < 8 * EPS[name] * exact.abs().max()
    for size, method in ((1, "exact"), (4, "bound"), (4, "enumerate")):
        ours, theirs = (each.nll(tokens, size, method).nll for each in (lm, wide))
        torch.testing.assert_close(ours, theirs, rtol=4 * EPS[name], atol=0)
    again = hybrid.load(trained, dtype=dtype, precision="auto")
    assert lm.generate([[], [1, 2, 3]], 8, seed=1).tokens == again.generate([[], [1, 2, 3]], 8, seed=1).tokens
    # Whether it has generated does not matter to what is saved.
    one, other = (load_file(folder / "model.safetensors") for folder in (before, lm.save(tmp_path / "after")))
    assert all(tensor.dtype == dtype and torch.equal(tensor, other[key]) for key, tensor in one.items())
    assert dtypes_of(hybrid.load(before)) == {torch.float32}


def test_a_planner_is_kept_as_the_model_is(trained: Path) -> None:
    for dtype in (None, "float16"):
        lm = hybrid.load(trained, dtype=dtype)
        planner = lm._planner(trained, 4)
        assert {p.dtype for p in planner.parameters()} == dtypes_of(lm)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dtype": "bfloat16", "precision": "fp32"}, r"^precision: 'fp32' does not go with dtype=bfloat16: .* is bf16"),
        ({"dtype": "float16", "precision": "bf16"}, r"^precision: 'bf16' does not go with dtype=float16: .* is fp16"),
        ({"precision": "fp16"}, r"^precision: 'fp16' is not one of auto, bf16, fp32, tf32"),
        ({"dtype": "bf16"}, r"^dtype: 'bf16' is not one of bfloat16, float16, float32"),
        ({"dtype": torch.int8}, r"^dtype: 'int8' is not one of"),
    ],
)
def test_what_contradicts_itself_is_refused(options: dict, message: str, trained: Path) -> None:
    with pytest.raises(ValueError, match=message):
        hybrid.load(trained, **options)


def test_numbers_that_float16_does_not_hold_are_refused(lm: LanguageModel, tmp_path: Path) -> None:
    file = lm.save(tmp_path / "saved") / "model.safetensors"
    weights = load_file(file)
    weights["final_norm.weight"][0] = -1e5
    save_file(weights, file)
    (file.parent / "manifest.json").unlink()
    assert hybrid.load(file.parent, dtype="bfloat16").model.final_norm.weight[0] < -9e4
    with pytest.raises(ValueError, match=r"final_norm.weight has numbers that float16 does not hold; take another"):
        hybrid.load(file.parent, dtype="float16")


def test_the_commands_take_a_dtype_and_say_how_likely_a_sentence_is(trained: Path, command: Command) -> None:
    words = ("--checkpoint", trained, "--max-new-tokens", 8, "--dtype", "bfloat16")
    quiet, loud = command("generate.py", *words), command("generate.py", *words, "--verbose")
    assert quiet.code == 0 and quiet.out == loud.out and SENTENCE not in quiet.err
    assert command("generate.py", *words, "--precision", "fp32").error.startswith(
        "error: precision: 'fp32' does not go"
    )
    lm = hybrid.load(trained, dtype="bfloat16")
    tokens = torch.tensor([lm.tokenizer.encode(SENTENCE)[:32]])
    nats, guess = float(lm.nll(tokens, 1, "exact").nll) / 32, math.log(lm.tokenizer.vocab_size)
    assert f"{SENTENCE!r}: {nats:.2f} nats a token (exact, block size 1); by guessing {guess:.2f}" in loud.err
    lm.config.objective.block_size = 4
    assert "nats a token (bound, block size 4)" in likelihood_of_a_sentence(lm)
    lm.tokenizer = CharTokenizer.train(["abc"], 0)
    assert "not known: " in likelihood_of_a_sentence(lm)
