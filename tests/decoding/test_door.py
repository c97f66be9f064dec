"""A decoder of the user's own: a class and a line, nothing in hybrid/ changes.

One chooses positions, three write tokens."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import Command, Configure
from decoding_toy import Conditionals, all_texts, chi_square_alarm
from toy import toy_model

import hybrid
from hybrid.data.tokenizers import CharTokenizer
from hybrid.decoding import DECODERS, GenerationConfig
from hybrid.lm import LanguageModel
from hybrid.options import option


@dataclass(frozen=True)
class FromBothEnds:
    """The outermost masked positions of the block, left and right at once."""

    both: bool = option(True, "reveal two positions a step")

    def start(self, view):
        return None

    def select(self, view, state):
        first, last = view.is_masked.cumsum(-1) == 1, view.is_masked.flip(-1).cumsum(-1).flip(-1) == 1
        return view.is_masked & (first | last if self.both else first), None


@dataclass(frozen=True)
class InPairs:
    """Draw the two leftmost masked tokens jointly: the second given the first, by two forwards."""

    def start(self, view):
        return None

    def select(self, view, state):
        canvas, order = view.tokens, view.is_masked.cumsum(-1)
        for i in (1, 2):
            place = view.is_masked & (order == i)
            canvas = canvas.masked_scatter(place, view.sample(view.read(canvas, place), place))
        return view.is_masked & (order <= 2), None, canvas


@dataclass(frozen=True)
class Speculative:
    """Draft the block at once, check it by one causal forward, keep what agrees and the first token that does not."""

    def start(self, view):
        return None

    def select(self, view, state):
        masked = view.is_masked
        draft = view.tokens.masked_scatter(masked, view.read(view.tokens, masked).argmax(-1))
        drawn = draft.masked_scatter(masked, view.sample(view.read(draft, masked, causal=True), masked))
        agree = ((drawn == draft) | ~masked).cumprod(-1)
        return masked & torch.cat([torch.ones_like(agree[:, :1]), agree[:, :-1]], dim=1).bool(), None, drawn


@dataclass(frozen=True)
class Corrected:
    """Write all at once, then draw each token anew given the others: a corrector, which changes known tokens."""

    min_steps = 2
    ignores_sampling = True

    def start(self, view):
        return None

    def select(self, view, state):
        canvas, number = view.tokens, torch.arange(view.tokens.shape[1])
        for step in range(1 if view.step == 0 else len(number)):
            place = view.is_free if view.step == 0 else view.is_free & (number == step)
            log_probs = view.read(canvas.masked_fill(place, view.mask_token_id), place)
            canvas = canvas.masked_scatter(place, view.sample(log_probs, place))
        return view.is_free, None, canvas


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {"mine": FromBothEnds, "in_pairs": InPairs, "corrected": Corrected, "speculative": Speculative}
    for name, entry in entries.items():
        monkeypatch.setitem(DECODERS, name, entry)


@pytest.mark.parametrize("name", ["mine", "in_pairs", "corrected"])
def test_a_text_is_the_same_alone_and_in_a_batch_cached_and_not(lm: hybrid.LanguageModel, name: str) -> None:
    """With gaps, guidance and an end of text among the prompts: what the engine owns, a decoder need not know."""
    prompts = [[1, lm.mask_token_id, 2], [], [3, 1, 2, 8, 1], [lm.tokenizer.end_of_text, 4, 4]]
    for options in ({}, {"guidance": 1.5}, {"stop_at_end": False, "slide": True}):
        config = GenerationConfig(4, name, seed=3, **options)
        whole = lm.generate(prompts, 30 if config.slide else 9, config=config)
        again = lm.generate(prompts, 30 if config.slide else 9, config=config, cache=False)
        assert (again.sequences, again.nfe) == (whole.sequences, whole.nfe)
        for prompt, sequence in zip(prompts, whole.sequences, strict=True):
            assert lm.generate([prompt], 30 if config.slide else 9, config=config).sequences == [sequence]
            pairs = zip(prompt, sequence, strict=False)
            assert lm.mask_token_id not in sequence and all(a in (b, lm.mask_token_id) for a, b in pairs)


def test_it_runs_and_streams(trained: Path) -> None:
    lm = hybrid.load(trained)
    options = {"block_size": 4, "seed": 1, "stop_at_end": False}
    generation = lm.generate([[], [1, 2]], 8, decoder="mine", **options)
    assert generation.nfe == 6, "the second row has three blocks, the longest of two steps each"
    steps = list(lm.stream([[], [1, 2]], 8, decoder="mine", **options))
    assert steps[-1].tokens == generation.tokens and steps[-1].nfe == 6
    known = [[token != lm.mask_token_id for token in row] for row in steps[0].tokens]
    assert known == [[True, False, False, True], [True, True]]
    one = lm.generate([[]], 8, decoder={"name": "mine", "both": False}, **options)
    assert one.tokens == lm.generate([[]], 8, decoder="left_to_right", **options).tokens


def test_it_is_evaluated(command: Command, copy_of_trained: Path) -> None:
    words = ["--decoders", "mine", "mine:both=false", "--samples", 2, "--new-tokens", 8, "--draws", 1]
    done = command("evaluate", "--checkpoint", copy_of_trained, "--block-size", 4, *words)
    assert done.code == 0, done.err
    assert "mine:both=false" in done.out
    assert "FromBothEnds" not in json.dumps(json.loads((copy_of_trained / "eval.json").read_text()))


def test_a_run_that_was_trained_without_it_generates_with_it(
    command: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "decoder_of_mine.py").write_text("""
from hybrid.decoding import DECODERS
class Late(DECODERS["left_to_right"]): pass
DECODERS["late"] = Late
""")
    words = ("generate.py", "--checkpoint", trained, "--max-new-tokens", 8, "--decoder", "late")
    error = command(*words).error
    assert "'late' is not one of" in error and "; one of your own needs" in error and "--imports MODULE" in error
    monkeypatch.syspath_prepend(tmp_path)
    try:
        done = command(*words, "--imports", "decoder_of_mine")
    finally:
        DECODERS.pop("late", None)
        sys.modules.pop("decoder_of_mine", None)
    assert done.code == 0 and done.out == command(*words[:-1], "left_to_right").out
    error = command(*words, "--imports", "no_such_module").error
    assert "--imports: cannot import 'no_such_module': No module" in error and "PYTHONPATH" in error


def test_its_options_are_checked(command: Command, trained: Path) -> None:
    error = command("generate.py", "--checkpoint", trained, "--decoder", "mine", "boht=1").error
    assert "did you mean 'both'?" in error


@pytest.mark.slow
def test_tokens_drawn_jointly_follow_the_law_of_left_to_right(configure: Configure, tmp_path: Path) -> None:
    """Chi-square of 6,000 texts of a block of 4 against the enumerated law, false alarm below 1e-5. Two at once drawn
    independently are found out. Without randomness the texts are equal."""
    model = toy_model(vocab=3)
    config = configure(tmp_path, "data.seq_len=4", "objective.block_size=4")
    lm = LanguageModel(config, CharTokenizer("ab"), model)
    law = Conditionals(model, 3, 4).follow(min)

    def alarm(decoder: object) -> float:
        result = lm.generate([[]] * 6000, 4, decoder=decoder, stop_at_end=False)
        assert result.nfe == (4 if decoder == "in_pairs" else 2), "every forward counts"
        index = (torch.tensor(result.tokens) * 3 ** torch.arange(3, -1, -1)).sum(1)
        return chi_square_alarm(torch.bincount(index, minlength=81), law)

    assert alarm("in_pairs") > 1e-5
    assert alarm({"name": "left_to_right", "per_step": 2}) < 1e-5
    for options in ({"temperature": 0}, {"top_k": 1}):
        pair, single = (lm.generate([[], [1]], 3, decoder=d, **options) for d in ("in_pairs", "left_to_right"))
        assert pair.tokens == single.tokens


@pytest.mark.thin(1)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_drafts_checked_by_the_same_network_follow_its_causal_law(
    configure: Configure, tmp_path: Path, size: int
) -> None:
    """Chi-square of 6,000 texts against the enumerated law at block size 1, false alarm below 1e-5 a case."""
    model = toy_model("causal", "next_token", vocab=3)
    options = ["model.context=causal", "model.prediction=next_token", "objective.block_size=[4,1,2,3]"]
    lm = LanguageModel(configure(tmp_path, "data.seq_len=4", *options), CharTokenizer("ab"), model)
    law = (-lm.nll(all_texts(3, 4), 1, "exact").nll).exp()
    run = {"block_size": size, "decoder": "speculative", "stop_at_end": False}
    result = lm.generate([[]] * 6000, 4, **run)
    index = (torch.tensor(result.tokens) * 3 ** torch.arange(3, -1, -1)).sum(1)
    assert chi_square_alarm(torch.bincount(index, minlength=81), law) > 1e-5
    for prompts in ([[0]], [[1, 1, 0], [], [2]]):
        whole = lm.generate(prompts, 1, **run, guidance=1.0)
        assert whole.tokens == lm.generate(prompts, 1, **run, guidance=1.0, cache=False).tokens
        assert whole.tokens == [lm.generate([prompt], 1, **run, guidance=1.0).tokens[0] for prompt in prompts]


def test_a_causal_reading_needs_a_network_that_predicts_the_next_token(lm: hybrid.LanguageModel) -> None:
    with pytest.raises(ValueError, match="a causal reading needs a network of prediction=next_token"):
        lm.generate([[]], 2, decoder="speculative")


def test_settings_that_a_decoder_does_not_follow_are_refused(lm: hybrid.LanguageModel) -> None:
    for name, value in (("temperature", 0.5), ("top_k", 3), ("top_p", 0.9)):
        with pytest.raises(ValueError, match=rf"{name}: {value} has no effect on Corrected\(\), .*; leave it out"):
            lm.generate([[]], 2, decoder="corrected", **{name: value})


def test_what_is_no_token_is_not_written(lm: hybrid.LanguageModel) -> None:
    class Wrong(InPairs):
        def select(self, view, state):
            return view.is_masked, None, torch.full_like(view.tokens, view.mask_token_id)

    with pytest.raises(ValueError, match=rf"decoder: it wrote {lm.mask_token_id}, which is no token of the vocabulary"):
        lm.generate([[]], 2, decoder=Wrong())


def test_tokens_drawn_jointly_have_no_policy_likelihood(lm: hybrid.LanguageModel) -> None:
    with pytest.raises(ValueError, match=r"decoder: InPairs\(\) draws tokens itself, .*; use another"):
        lm.nll(torch.tensor([[1, 2, 3]]), method="policy", decoder="in_pairs")
