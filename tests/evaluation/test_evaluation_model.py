"""Evaluation models, ours and a tiny random Hugging Face model, against likelihoods worked out by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_tokenizers import wordpiece

import hybrid
from hybrid.data.tokenizers import SubwordTokenizer
from hybrid.evaluation.base import Reading
from hybrid.evaluation.evaluation_model import load_evaluation_model
from hybrid.evaluation.foreign_model import ForeignModel
from hybrid.evaluation.own_model import OwnModel
from hybrid.model.build import build_model
from hybrid.model.two_stream import two_stream_hidden

TEXTS = ["The value of a list is set.", "And when no key exists", "", "The name"]
LONG = "When no key exists by its name returns the value of a list."  # more than the context of either


# ---------------------------------------------------------------------------------------------------------------------
# A run of this repository


@pytest.fixture(scope="module")
def evaluation_model(trained: Path) -> OwnModel:
    evaluation_model = load_evaluation_model(trained)
    assert isinstance(evaluation_model, OwnModel)
    return evaluation_model


def masked_only(evaluation_model: OwnModel) -> OwnModel:
    """The same weights as a model that was not trained at block size 1."""
    config = dataclasses.replace(
        evaluation_model.lm.config, objective=dataclasses.replace(evaluation_model.lm.config.objective, block_size=4)
    )
    return OwnModel(dataclasses.replace(evaluation_model.lm, config=config))


def test_it_is_the_exact_likelihood_where_block_size_1_was_trained(evaluation_model: OwnModel) -> None:
    assert evaluation_model.about["likelihood"] == "exact" and evaluation_model.about["block_size"] == 1
    reading = evaluation_model.read(TEXTS)
    for i, text in enumerate(TEXTS):
        ids = evaluation_model.lm.tokenizer.encode(text)
        expected = float(evaluation_model.lm.nll(torch.tensor([ids]), 1, "exact").nll) if ids else 0.0
        assert reading.nats[i] == pytest.approx(expected, rel=1e-6)
        assert (reading.tokens[i], reading.bytes[i]) == (len(ids), len(text.encode()))
    assert not reading.stderr.any() and not reading.is_cut.any()
    total = reading.nats.sum()
    assert reading.gen_ppl == pytest.approx(math.exp(total / reading.tokens.sum()))
    assert reading.nats_per_byte == pytest.approx(total / sum(len(text.encode()) for text in TEXTS))


def test_it_is_the_bound_elsewhere(evaluation_model: OwnModel) -> None:
    other = masked_only(evaluation_model)
    assert other.about["likelihood"] == "bound" and other.about["block_size"] == 4
    reading = other.read([TEXTS[0]])
    ids = torch.tensor([evaluation_model.lm.tokenizer.encode(TEXTS[0])])
    every = float(evaluation_model.lm.nll(ids, 4, "bound", draws="all").nll)
    assert reading.stderr[0] > 0 and reading.stderr_per_token == pytest.approx(reading.stderr[0] / ids.numel())
    assert abs(reading.nats[0] - every) < 5 * reading.stderr[0]  # false alarm below 1 % with 8 draws; seeded


@pytest.mark.parametrize("kind", ["exact", "bound"])
def test_neither_company_nor_batch_matters(evaluation_model: OwnModel, kind: str) -> None:
    evaluation_model = evaluation_model if kind == "exact" else masked_only(evaluation_model)
    whole = evaluation_model.read([*TEXTS, LONG])
    for i, text in enumerate([*TEXTS, LONG]):
        alone = evaluation_model.read([text])
        assert alone.nats[0] == pytest.approx(whole.nats[i], rel=1e-5)
        np.testing.assert_allclose(alone.features[0], whole.features[i], atol=1e-5)


def test_a_long_text_is_cut(evaluation_model: OwnModel) -> None:
    seq_len = evaluation_model.lm.config.data.seq_len
    reading, start = evaluation_model.read([LONG]), evaluation_model.read([LONG[:seq_len]])
    assert reading.is_cut[0] and not start.is_cut[0]
    assert (reading.tokens[0], reading.bytes[0]) == (seq_len, seq_len)
    assert reading.nats[0] == pytest.approx(start.nats[0])


@pytest.mark.parametrize("kind", ["exact", "bound"])
def test_features_see_the_whole_text(evaluation_model: OwnModel, kind: str) -> None:
    """Any token changes them (but the last at block size 1, which is predicted and not read)."""
    evaluation_model = evaluation_model if kind == "exact" else masked_only(evaluation_model)
    text = "The name of "
    base = evaluation_model.read([text]).features[0]
    assert base.shape == (evaluation_model.lm.config.model.dim,) and np.isfinite(base).all()
    for i in range(len(text) - (kind == "exact")):
        other = text[:i] + ("s" if text[i] != "s" else "t") + text[i + 1 :]
        assert np.abs(evaluation_model.read([other]).features[0] - base).max() > 1e-6, i


def test_features_are_means_of_the_states_that_predict_each_token(evaluation_model: OwnModel) -> None:
    """With every other token masked, the even ones first; at block size 1 each is predicted from those before it."""
    ids = torch.tensor([evaluation_model.lm.tokenizer.encode("The name of a")])
    for one, size in ((evaluation_model, 1), (masked_only(evaluation_model), 4)):
        states = torch.zeros(ids.shape[1], evaluation_model.lm.config.model.dim)
        for first in range(2):
            masked = (torch.arange(ids.shape[1]) % 2 == first)[None, None]
            with torch.no_grad():
                states[masked[0, 0]] = two_stream_hidden(evaluation_model.lm.model, ids, masked, size)
        got = one.read(["The name of a"]).features[0]
        np.testing.assert_allclose(got, states.mean(0).numpy(), rtol=1e-4, atol=1e-6)


def test_a_bound_is_that_of_eight_draws(evaluation_model: OwnModel) -> None:
    other, ids = masked_only(evaluation_model), torch.tensor([evaluation_model.lm.tokenizer.encode(TEXTS[0])])
    expected, reading = evaluation_model.lm.nll(ids, 4, "bound", draws=8), other.read([TEXTS[0]])
    assert reading.nats[0] == pytest.approx(float(expected.nll)) and reading.tokens[0] == ids.numel()
    assert reading.stderr[0] == pytest.approx(float(expected.stderr))


def test_nothing_to_read(evaluation_model: OwnModel) -> None:
    reading = evaluation_model.read(["", ""])
    assert math.isnan(reading.gen_ppl) and math.isnan(reading.nats_per_byte) and not reading.features.any()


def test_figures_over_several_texts_by_hand() -> None:
    """Sums over all texts, not means of theirs; errors of independent noise add in quadrature."""
    nats, stderr, tokens, n_bytes = map(np.array, ([4.0, 6.0, 0.0], [0.3, 0.4, 0.0], [2, 3, 0], [8, 12, 0]))
    reading = Reading(nats, stderr, tokens, n_bytes, np.zeros((3, 2)), tokens > 9)
    assert reading.nats_per_token == pytest.approx(10 / 5) and reading.nats_per_byte == pytest.approx(10 / 20)
    assert reading.stderr_per_token == pytest.approx(0.5 / 5)  # the root of 0.09 + 0.16
    assert reading.gen_ppl == pytest.approx(math.exp(2))


def test_a_model_that_reads_something_else_than_the_texts(evaluation_model: OwnModel, tmp_path: Path) -> None:
    """Its vocabulary is of lower-case words and letters: what it does not know, it does not pay for."""
    words = SubwordTokenizer.from_file(wordpiece(tmp_path / "words.json", ("the", "value", "of", "a", "list")))
    model = build_model(
        evaluation_model.lm.config.model, words.vocab_size, words.end_of_text, evaluation_model.lm.device, seed=0
    )
    other = OwnModel(dataclasses.replace(evaluation_model.lm, tokenizer=words, model=model))
    assert other.read(["the value of a list"]).nats_per_byte > 0
    reading = other.read(["the value of a list", "The value of a list"])
    assert reading.gen_ppl > 1 and math.isnan(reading.nats_per_byte)


def test_a_model_that_finds_a_text_impossible() -> None:
    one = np.ones(1)
    assert Reading(one * 1e6, one * 0, one, one, one[:, None], one > 1).gen_ppl == math.inf


def test_a_character_that_the_model_does_not_know(evaluation_model: OwnModel) -> None:
    with pytest.raises(ValueError, match=r"^judge: .*tiny: character '\?' .* is not among"):
        evaluation_model.read(["The name?"])


# ---------------------------------------------------------------------------------------------------------------------
# A Hugging Face folder


def make_folder(folder: Path, begin: str | None = "<|endoftext|>", context: int = 24) -> Path:
    """A random GPT-2 of byte-level BPE, as `save_pretrained` leaves it."""
    import tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=270, special_tokens=["<|endoftext|>"], initial_alphabet=sorted(alphabet), show_progress=False
    )
    bpe.train_from_iterator(TEXTS, trainer)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=270, n_positions=context, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=begin, eos_token=begin).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def foreign(folder: Path) -> ForeignModel:
    evaluation_model = load_evaluation_model(folder)
    assert isinstance(evaluation_model, ForeignModel)
    return evaluation_model


@torch.no_grad()
def by_hand(evaluation_model: ForeignModel, ids: list[int], first: int) -> float:
    """NLL of ids[first:], one conditional after the other."""
    total = 0.0
    for i in range(first, len(ids)):
        logits = evaluation_model.model(input_ids=torch.tensor([ids[:i]])).logits[0, -1]
        total -= float(logits.double().log_softmax(-1)[ids[i]])
    return total


def test_a_text_is_read_behind_the_begin_token(foreign: ForeignModel) -> None:
    assert foreign.about["first_token_scored"] and foreign.about["context"] == 23
    reading = foreign.read(TEXTS)
    for i, text in enumerate(TEXTS):
        ids = foreign.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert reading.nats[i] == pytest.approx(by_hand(foreign, [0, *ids], 1), rel=1e-4, abs=1e-9)
        assert (reading.tokens[i], reading.bytes[i]) == (len(ids), len(text.encode()))


def test_without_a_begin_token_the_first_is_not_scored(tmp_path: Path) -> None:
    evaluation_model = load_evaluation_model(make_folder(tmp_path / "gpt2", begin=None))
    assert isinstance(evaluation_model, ForeignModel) and not evaluation_model.about["first_token_scored"]
    text = TEXTS[0]
    coded = evaluation_model.tokenizer(text, return_offsets_mapping=True)
    reading = evaluation_model.read([text, "", "T"])
    assert reading.nats[0] == pytest.approx(by_hand(evaluation_model, coded["input_ids"], 1), rel=1e-4)
    assert reading.tokens.tolist() == [len(coded["input_ids"]) - 1, 0, 0]
    assert reading.bytes.tolist() == [len(text[coded["offset_mapping"][0][1] :].encode()), 0, 0]
    assert reading.features[2].any() and not reading.features[1].any()


def test_a_long_text_is_cut_to_the_context(foreign: ForeignModel) -> None:
    text = "caf\u00e9 " + LONG
    coded = foreign.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    reading = foreign.read([text, "The"])
    assert reading.is_cut.tolist() == [True, False] and reading.tokens[0] == 23
    assert reading.bytes[0] == len(text[: coded["offset_mapping"][22][1]].encode())
    assert reading.nats[0] == pytest.approx(by_hand(foreign, [0, *coded["input_ids"][:23]], 1), rel=1e-4)


def test_padding_does_not_matter(foreign: ForeignModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = foreign.read([*TEXTS, LONG])
    monkeypatch.setattr("hybrid.evaluation.foreign_model.LOGITS_PER_FORWARD", 1)  # one text at a time
    alone = foreign.read([*TEXTS, LONG])
    np.testing.assert_allclose(whole.nats, alone.nats, rtol=1e-5)
    np.testing.assert_allclose(whole.features, alone.features, atol=1e-5)


@torch.no_grad()
def test_features_are_the_mean_of_the_last_hidden_states(foreign: ForeignModel) -> None:
    ids = foreign.tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    hidden = foreign.model.transformer(input_ids=torch.tensor([[0, *ids]])).last_hidden_state[0, 1:]
    np.testing.assert_allclose(foreign.read(TEXTS[:1]).features[0], hidden.mean(0).numpy(), atol=1e-5)


def test_nothing_is_said_on_the_way(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_evaluation_model(folder).read([LONG])
    assert capfd.readouterr() == ("", "")


def test_weights_that_must_be_unpickled_are_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file

    bad = shutil.copytree(folder, tmp_path / "bad")
    torch.save(load_file(bad / "model.safetensors"), bad / "pytorch_model.bin")
    (bad / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"^judge: .*bad cannot be loaded as a causal language model: .*safetensors"):
        load_evaluation_model(bad)


def test_code_in_the_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    import shutil

    bad = shutil.copytree(folder, tmp_path / "bad")
    config: dict[str, Any] = json.loads((bad / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}
    (bad / "config.json").write_text(json.dumps(config))
    (bad / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ValueError, match=r"^judge: .*bad cannot be loaded"):
        load_evaluation_model(bad)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("holds", ["nothing", "no such folder"])
def test_what_is_no_evaluation_model(holds: str, tmp_path: Path) -> None:
    path = tmp_path if holds == "nothing" else tmp_path / "gpt2"
    with pytest.raises(ValueError, match=r"^judge: .*(holds no checkpoint|is no folder; give a run)"):
        load_evaluation_model(path)


def test_a_saved_model_is_an_evaluation_model(trained: Path, tmp_path: Path, evaluation_model: OwnModel) -> None:
    hybrid.load(trained).save(tmp_path / "saved")
    assert load_evaluation_model(tmp_path / "saved").read(TEXTS).gen_ppl == pytest.approx(
        evaluation_model.read(TEXTS).gen_ppl
    )
